"""Blocking calls off the event loop, on threads that cannot keep the worker from exiting."""

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
"""Things that a thread may be ahead of the event loop."""


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


class Inbox:
    """What a thread hands to the event loop, in order: any number of things for each time the loop is woken."""

    def __init__(self, take: Callable[[Any], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._take = take
        self._things: deque[Any] = deque()
        self._told = False

    def put(self, thing: Any) -> None:
        """Have ``take`` called with ``thing`` on the event loop. Raises ``RuntimeError`` if that is closed."""
        while len(self._things) >= MOST_UNTAKEN and not self._loop.is_closed():
            time.sleep(0.001)  # the loop has other things to do, too
        self._things.append(thing)
        if not self._told:
            self._told = True
            self._loop.call_soon_threadsafe(self.empty)

    def empty(self) -> None:
        """Hand over what is there, and not what comes meanwhile; on the event loop."""
        self._told = False
        for _ in range(len(self._things)):
            self._take(self._things.popleft())
