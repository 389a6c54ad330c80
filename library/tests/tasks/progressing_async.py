"""As ``progressing``, as an async function."""

from tests.tasks.progressing import Input, load
from tests.tasks.progressing import awaiting as process

__all__ = ["Input", "load", "process"]
