"""Guards the asyncio tasks that a call starts, in ``gather`` or a ``TaskGroup``: what they raise fails its items only.

An asyncio task that raises ``SystemExit`` or ``KeyboardInterrupt`` ends the event loop (CPython, ``asyncio.Task``), and
with it the worker and every job in hand. The SDK's own asyncio tasks are not guarded.
"""

import asyncio
from collections.abc import Coroutine
from contextvars import ContextVar
from typing import Any

guarded: ContextVar[bool] = ContextVar("guarded", default=False)
"""Set where a call begins; the asyncio tasks that it starts inherit it."""


class Exited(Exception):
    """An asyncio task that a call had started called ``sys.exit`` or was interrupted."""


def install() -> None:
    """Guard every asyncio task of the running event loop that is started where ``guarded`` is set."""
    asyncio.get_running_loop().set_task_factory(_start)


def _start(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> "asyncio.Task[Any]":
    if guarded.get():
        coroutine = _contain(coroutine)
    return asyncio.Task(coroutine, loop=loop, **options)


async def _contain(coroutine: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:
        raise Exited(f"{type(error).__name__} in an asyncio task that the call had started") from error
