"""The deadly task as another kind of function."""

from tests.tasks.deadly import Input, load
from tests.tasks.deadly import in_batches as process_batch

__all__ = ["Input", "load", "process_batch"]
