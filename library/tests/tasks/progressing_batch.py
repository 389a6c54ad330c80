"""As ``progressing``, a list at a time."""

from tests.tasks.progressing import Input, load
from tests.tasks.progressing import in_batches as process_batch

__all__ = ["Input", "load", "process_batch"]
