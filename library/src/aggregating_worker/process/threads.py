"""Runs blocking calls in threads that cannot keep a process from exiting."""

import math
import threading
from collections.abc import Callable
from queue import SimpleQueue


class Threads:
    """Up to ``most`` daemon threads. A call that finds none idle starts one; if there are ``most``, it waits.

    Not ``ThreadPoolExecutor``: the interpreter joins its threads at exit, so that a single upload that hangs would keep
    a worker that is told to stop.
    """

    def __init__(self, most: float = math.inf) -> None:
        self._most = most
        self._started = 0
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._idle = threading.Semaphore(0)

    def run(self, call: Callable[[], None]) -> None:
        """Run ``call``, which must not raise, in a thread.

        If the system starts no more threads, it waits for one of the others; raises ``RuntimeError`` if there are none.
        """
        if not self._idle.acquire(blocking=False) and self._started < self._most:
            try:
                threading.Thread(target=self._serve, name="process", daemon=True).start()
                self._started += 1
            except RuntimeError:
                if not self._started:
                    raise
        self._calls.put(call)

    def _serve(self) -> None:
        while True:
            self._calls.get()()
            self._idle.release()
