"""The same as ``folders``, as an async function."""

import asyncio
from typing import Any

from aggregating_worker.context import Context
from tests.tasks.folders import write
from tests.tasks.hostile import Input, load

__all__ = ["Input", "load", "process"]


async def process(item: Any, job: Input, context: Context) -> Any:
    if item == "rest":
        write("", context)
        await asyncio.sleep(1_000)
    await asyncio.sleep(0)
    return write(item, context)
