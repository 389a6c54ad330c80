"""``python -m endpoint.plan``: how long a list takes ``map``, and what it costs, by shard and by workers.

A simulation of an endpoint that scales by queue delay (Runpod docs, serverless/endpoints/endpoint-configurations). It
assumes that the first job starts a worker at once, that a job which has waited for the queue delay starts one more, and
one more after each further delay, up to the maximum; that a started worker is ready after its cold start, always; that
every item takes the same time; that a worker does one job after the other, with the same gap between any two; and that
it is paid for from its start to the end of its idle timeout. It knows nothing of failures, throttled workers or the
size of results.
"""

import argparse
import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

SHARDS = (50, 100, 200, 500, 1_000, 2_000, 5_000)
WORKERS = (1, 2, 4, 8, 16, 32)
MAX_ITEMS = 5_000_000
"""Items that are simulated within some seconds; ten times as many take ten times as long."""


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


def table(plan: Plan, show: Callable[[Outcome], str]) -> str:
    """Return what ``show`` makes of the plan at every shard and number of workers, in lines."""
    lines = ["workers at most  " + "".join(f"{f'shard {shard:,}':>13}" for shard in SHARDS)]
    for workers in WORKERS:
        plans = [replace(plan, shard=shard, workers=workers, in_flight=in_flight(workers)) for shard in SHARDS]
        lines.append(f"{workers:>15}  " + "".join(f"{show(Simulation(each).run()):>13}" for each in plans))
    return "\n".join(lines)


def in_flight(workers: int) -> int:
    """Return how many jobs keep that many workers busy: one in hand, and one in the queue so that more are started."""
    return 2 * workers


def duration(seconds: float) -> str:
    """Return seconds as hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def main() -> None:
    """Print the two tables for a list of one's own."""
    parser = argparse.ArgumentParser(prog="python -m endpoint.plan", description="Simulate map on an endpoint.")
    parser.add_argument("--items", type=int, default=1_000_000, help="default: 1000000")
    parser.add_argument("--seconds", type=float, default=0.05, help="per item (default: 0.05)")
    parser.add_argument("--at-once", type=int, default=4, help="ITEM_CONCURRENCY (default: 4)")
    parser.add_argument("--cold-start", type=float, default=Plan.cold_start, help="seconds (default: 10)")
    parser.add_argument("--queue-delay", type=float, default=Plan.queue_delay, help="seconds (default: 4)")
    parser.add_argument("--idle-timeout", type=float, default=Plan.idle_timeout, help="seconds (default: 10)")
    parser.add_argument("--between-jobs", type=float, default=Plan.between_jobs, help="seconds (default: 0.03)")
    given = parser.parse_args()
    if not (1 <= given.items <= MAX_ITEMS and given.at_once >= 1 and all(0 < each < 10**6 for each in times(given))):
        parser.error(
            f"items are from 1 to {MAX_ITEMS}, --at-once is 1 or more, and seconds are more than 0, less than a million"
        )
    plan = Plan(shard=1, in_flight=1, workers=1, **vars(given))
    print(
        f"{given.items:,} items of {given.seconds:g} s, {given.at_once} at once in a worker",
        "Hours from first to last:\n" + table(plan, lambda outcome: duration(outcome.seconds)),
        "Hours of workers paid for:\n" + table(plan, lambda outcome: duration(outcome.paid)),
        sep="\n\n",
    )


def times(given: argparse.Namespace) -> list[float]:
    """Return all the times that were given."""
    return [given.seconds, given.cold_start, given.queue_delay, given.idle_timeout, given.between_jobs]


if __name__ == "__main__":
    main()
