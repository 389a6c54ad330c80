"""Blocking calls off the event loop, on threads that cannot keep the worker from exiting."""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


class Threads:
    """Daemon threads, one more whenever a call finds none idle; who calls bounds how many calls there are.

    Not ``ThreadPoolExecutor``: the interpreter joins its threads at exit, so a single call that never returns would
    turn SIGTERM, and the end of a local test, into a hang.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._idle = threading.Semaphore(0)

    async def run(self, call: Callable[[], T]) -> T:
        """Return what ``call`` returns. A cancelled wait leaves the call running.

        ``call`` should not raise: not every exception can pass through a future. Raises ``RuntimeError`` if it does.
        """
        loop = asyncio.get_running_loop()
        returned: asyncio.Future[T] = loop.create_future()
        context = contextvars.copy_context()

        def report() -> None:
            value: T | RuntimeError
            try:
                value = context.run(call)
            except BaseException:
                value = RuntimeError("The call raised.")
            self._idle.release()
            with suppress(RuntimeError):  # the loop is closed: the worker is exiting, and nobody waits for this
                loop.call_soon_threadsafe(_settle, returned, value)

        if not self._idle.acquire(blocking=False):
            threading.Thread(target=self._serve, name="process", daemon=True).start()
        self._calls.put(report)
        return await returned

    def _serve(self) -> None:
        while True:
            self._calls.get()()


def _settle(returned: asyncio.Future[T], value: T | RuntimeError) -> None:
    if returned.done():
        return
    if isinstance(value, RuntimeError):
        returned.set_exception(value)
    else:
        returned.set_result(value)
