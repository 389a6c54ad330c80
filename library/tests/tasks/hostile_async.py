"""A task that does to the worker what its items name, as an async function."""

import asyncio
from typing import Any

from tests.tasks.hostile import Input, act, blocks, load

__all__ = ["Input", "load", "process"]


async def end() -> None:
    raise SystemExit


async def process(item: Any, job: Input) -> Any:
    if item == "subtask":
        return await asyncio.gather(end(), end())
    if blocks(item):
        return await asyncio.to_thread(act, item)
    await asyncio.sleep(0)
    return act(item)
