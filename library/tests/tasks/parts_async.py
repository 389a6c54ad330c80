"""A task whose items say what they yield, as an async generator."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

from tests.tasks import parts
from tests.tasks.hostile import Input, act, blocks, load

__all__ = ["Input", "load", "process"]


async def process(item: dict[str, Any], job: Input) -> AsyncIterator[Any]:
    then = item.pop("then", None)
    with closing(parts.process(item, job)) as generator:  # type: ignore[type-var]
        for part in generator:
            await asyncio.sleep(0)
            yield part
    if then is not None:
        yield await asyncio.to_thread(act, then) if blocks(then) else act(then)
