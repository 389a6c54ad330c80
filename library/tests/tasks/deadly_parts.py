"""The deadly task as another kind of function."""

from tests.tasks.deadly import Input, load
from tests.tasks.deadly import in_parts as process

__all__ = ["Input", "load", "process"]
