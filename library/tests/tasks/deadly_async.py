"""The deadly task as another kind of function."""

from tests.tasks.deadly import Input, load
from tests.tasks.deadly import awaiting as process

__all__ = ["Input", "load", "process"]
