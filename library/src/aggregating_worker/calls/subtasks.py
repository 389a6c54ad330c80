"""The tasks that an async task starts itself, in ``gather`` or a ``TaskGroup``: what they raise stays with it.

A task that raises ``SystemExit`` or ``KeyboardInterrupt`` ends the event loop (CPython, ``asyncio.Task``), and with it
the worker and every job in hand. Only what a call of the task starts is guarded, not the SDK's own tasks.
"""

import asyncio
from collections.abc import Coroutine
from contextvars import ContextVar
from typing import Any

guarded: ContextVar[bool] = ContextVar("guarded", default=False)
"""Set where a call of the task begins; the tasks that it starts inherit it."""


class Exited(Exception):
    """A task's own task called ``sys.exit`` or was interrupted."""


def install() -> None:
    """Guard, on the running event loop, every task that is started where ``guarded`` is set."""
    asyncio.get_running_loop().set_task_factory(_start)


def _start(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> "asyncio.Task[Any]":
    if guarded.get():
        coroutine = _contain(coroutine)
    return asyncio.Task(coroutine, loop=loop, **options)


async def _contain(coroutine: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:
        raise Exited(f"{type(error).__name__} in a task of its own") from error
