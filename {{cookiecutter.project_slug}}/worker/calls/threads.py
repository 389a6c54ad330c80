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

    def run(self, call: Callable[[], T], then: Callable[[T], None]) -> None:
        """Run ``call``, which must not raise, and then ``then``, with what it returned, on the event loop.

        Raises ``RuntimeError`` if no thread can be started.
        """
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()

        def report() -> None:
            returned = context.run(call)
            self._idle.release()
            with suppress(RuntimeError):  # the loop is closed: the worker is exiting, and nobody waits for this
                loop.call_soon_threadsafe(then, returned)

        if not self._idle.acquire(blocking=False):
            threading.Thread(target=self._serve, name="process", daemon=True).start()
        self._calls.put(report)

    def _serve(self) -> None:
        while True:
            self._calls.get()()
