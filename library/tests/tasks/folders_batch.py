"""The same as ``folders``, a batch at a time."""

from typing import Any

from aggregating_worker.context import Context
from tests.tasks.folders import write
from tests.tasks.hostile import Input, load

__all__ = ["Input", "load", "process_batch"]


def process_batch(items: list[Any], job: Input, contexts: list[Context]) -> list[Any]:
    return [write_or_fail(item, context) for item, context in zip(items, contexts, strict=True)]


def write_or_fail(item: Any, context: Context) -> Any:
    try:
        return write(item, context)
    except ValueError as error:
        return error
