"""Blocking calls off the event loop, on threads that cannot keep the worker from exiting."""

import asyncio
import contextvars
import math
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


class Threads:
    """Daemon threads, one more whenever a call finds none idle, up to ``most``; more calls than that wait.

    Not ``ThreadPoolExecutor``: the interpreter joins its threads at exit, so a single call that never returns would
    turn SIGTERM, and the end of a local test, into a hang.
    """

    def __init__(self, most: float = math.inf) -> None:
        self._most = most
        self._started = 0
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._idle = threading.Semaphore(0)

    def run(self, call: Callable[[], T], then: Callable[[T], None]) -> None:
        """Run ``call``, which must not raise, and then ``then``, with what it returned, on the event loop.

        Where no more threads can be started it waits for one of those that are there. Raises ``RuntimeError`` if there
        is none.
        """
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()

        def report() -> None:
            returned = context.run(call)
            self._idle.release()
            with suppress(RuntimeError):  # the loop is closed: the worker is exiting, and nobody waits for this
                loop.call_soon_threadsafe(then, returned)

        if not self._idle.acquire(blocking=False) and self._started < self._most:
            try:
                threading.Thread(target=self._serve, name="process", daemon=True).start()
                self._started += 1
            except RuntimeError:
                if not self._started:
                    raise
        self._calls.put(report)

    def _serve(self) -> None:
        while True:
            self._calls.get()()
