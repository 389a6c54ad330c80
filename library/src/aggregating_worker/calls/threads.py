"""Runs blocking calls in threads that cannot keep the worker from exiting."""

import asyncio
import contextvars
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

MOST_UNTAKEN = 1_000
"""Things that a thread may have put and the event loop not yet taken."""


class Threads:
    """Up to ``most`` daemon threads. A call that finds none idle starts one; if there are ``most``, it waits.

    Not ``ThreadPoolExecutor``: the interpreter joins its threads at exit, so after SIGTERM, or at the end of a local
    test, a single call that never returns would hang the process.
    """

    def __init__(self, most: float = math.inf) -> None:
        self._most = most
        self._started = 0
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._idle = threading.Semaphore(0)

    def run(self, call: Callable[[], T], then: Callable[[T], None]) -> None:
        """Run ``call``, which must not raise, in a thread, and then ``then``, with its result, on the event loop.

        If the system starts no more threads, the call waits for one of the others; raises ``RuntimeError`` if there are
        none.
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


class Inbox:
    """Hands things from a thread to the event loop, in order. Waking the loop once hands over all that are there."""

    def __init__(self, take: Callable[[Any], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._take = take
        self._things: deque[Any] = deque()
        self._told = False

    def put(self, thing: Any) -> None:
        """Have ``take`` called with ``thing`` on the event loop. Raises ``RuntimeError`` if that is closed."""
        while len(self._things) >= MOST_UNTAKEN and not self._loop.is_closed():
            time.sleep(0.001)  # let the event loop catch up
        self._things.append(thing)
        if not self._told:
            self._told = True
            self._loop.call_soon_threadsafe(self.empty)

    def empty(self) -> None:
        """On the event loop: hand over the things that are there now, and leave those that come meanwhile for later."""
        self._told = False
        for _ in range(len(self._things)):
            self._take(self._things.popleft())
