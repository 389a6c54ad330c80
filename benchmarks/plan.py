"""How long a list takes ``map``, and what it costs, by shard and by workers: for the chart of ``scale.py``.

A simulation of an endpoint that scales by queue delay (Runpod docs, serverless/endpoints/endpoint-configurations). It
assumes that the first job starts a worker at once, that a job which has waited for the queue delay starts one more, and
one more after each further delay, up to the maximum; that a started worker is ready after its cold start, always; that
every item takes the same time; that a worker does one job after the other, with the same gap between any two; and that
it is paid for from its start to the end of its idle timeout. It knows nothing of failures, throttled workers or the
size of results.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

SHARDS = (50, 100, 200, 500, 1_000, 2_000, 5_000)


@dataclass(frozen=True)
class Plan:
    """A list, how ``map`` cuts it, and the endpoint it goes through. Times are seconds."""

    items: int
    seconds: float
    """Per item."""
    at_once: int
    """Items under way at once in a worker: ``ITEM_CONCURRENCY``."""
    shard: int
    in_flight: int
    workers: int
    """Workers at most."""
    cold_start: float = 10.0
    queue_delay: float = 4.0
    idle_timeout: float = 10.0
    between_jobs: float = 0.03
    """From one job's last item to the next one's first: a round trip to the endpoint, here of 20 ms, and what a worker
    with a single slot needs beside. The SDK's own loop (1.12.0, ``rp_scale.get_jobs``) takes a second."""


@dataclass(frozen=True)
class Outcome:
    """What came of a plan: its ``seconds``, those ``paid`` over all workers, and how many ``workers`` there were."""

    seconds: float
    paid: float
    workers: int


class Simulation:
    """One run of a ``plan``: events in the order of their time."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._now = 0.0
        self._left = plan.items
        self._queue: deque[tuple[int, int]] = deque()
        self._idle: dict[int, int] = {}
        self._started: dict[int, float] = {}
        self._workers = 0
        self._peak = 0
        self._paid = 0.0
        self._end = 0.0

    def run(self) -> Outcome:
        """Run to the end."""
        for _ in range(self._plan.in_flight):
            self._submit()
        while self._events:
            self._now, _, act = heapq.heappop(self._events)
            act()
        return Outcome(self._end, self._paid, self._peak)

    def _later(self, seconds: float, act: Callable[[], None]) -> int:
        self._number += 1
        heapq.heappush(self._events, (self._now + seconds, self._number, act))
        return self._number

    def _submit(self) -> None:
        if not self._left:
            return
        items = min(self._plan.shard, self._left)
        self._left -= items
        self._number += 1
        job = (self._number, items)
        self._queue.append(job)
        self._assign()
        first = not self._started and len(self._queue) == 1
        self._later(0 if first else self._plan.queue_delay, lambda: self._scale(job))

    def _scale(self, job: tuple[int, int]) -> None:
        if not self._queue or job[0] < self._queue[0][0]:
            return
        if len(self._started) == self._plan.workers:
            return  # none of them stops while a job waits
        self._workers += 1
        worker = self._workers
        self._started[worker] = self._now
        self._peak = max(self._peak, len(self._started))
        self._later(self._plan.cold_start, lambda: self._rest(worker))
        self._later(self._plan.queue_delay, lambda: self._scale(job))

    def _assign(self) -> None:
        while self._queue and self._idle:
            worker, _ = self._idle.popitem()
            _, items = self._queue.popleft()
            rounds = math.ceil(items / self._plan.at_once)
            self._later(self._plan.between_jobs + rounds * self._plan.seconds, partial(self._done, worker))

    def _done(self, worker: int) -> None:
        self._end = self._now
        self._rest(worker)
        self._submit()

    def _rest(self, worker: int) -> None:
        self._idle[worker] = self._later(self._plan.idle_timeout, lambda: self._stop(worker, since))
        since = self._idle[worker]
        self._assign()

    def _stop(self, worker: int, since: int) -> None:
        if self._idle.get(worker) == since:
            del self._idle[worker]
            self._paid += self._now - self._started.pop(worker)


def in_flight(workers: int) -> int:
    """Return how many jobs keep that many workers busy: one in hand, and one in the queue so that more are started."""
    return 2 * workers
