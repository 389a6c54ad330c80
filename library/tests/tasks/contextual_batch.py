"""A task that gives back what it is told of each item of a batch."""

from typing import Any

from aggregating_worker.context import Context
from tests.tasks.hostile import Input, load

__all__ = ["Input", "load", "process_batch"]


async def process_batch(items: list[Any], job: Input, contexts: list[Context]) -> list[Any]:
    assert job.items == items
    return [{"job_id": context.job_id, "index": context.index, "keys": sorted(context.job)} for context in contexts]
