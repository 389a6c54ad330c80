"""The jobs that workers are to stop, and the workers that do not."""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass

from aggregating_worker.local.job import Signal

TIMES = 3
"""How often a worker is told: the SDK (1.12.0, ``rp_scale``) ignores it until it has begun the job, up to 0.1 s after
taking it."""
PAUSE = 0.5
"""Seconds from one time to the next."""
GRACE = 10.0
"""Seconds that a worker has to stop a job once it has been told for the last time; more than two of its pings."""


@dataclass
class Stop:
    """One job that a worker is to stop."""

    left: int
    """How often the worker will be told yet."""
    timer: asyncio.TimerHandle


class Stops:
    """What is to be stopped, by worker; ``on_ignored`` is called with a worker that has not done so after ``GRACE``.

    The protocol has no answer to a stop: a worker has followed it when it says that it has no such job in hand.
    """

    def __init__(self) -> None:
        self.on_ignored: Callable[[str], None] = lambda _: None
        self.changed = Signal()
        self._stops: dict[str, dict[str, Stop]] = {}
        self._said: dict[str, list[str]] = {}

    @property
    def open(self) -> bool:
        """Whether there is anything that a worker has yet to stop."""
        return bool(self._stops)

    def stop(self, worker: str, job_id: str, times: int = TIMES) -> None:
        """Tell ``worker`` to stop the job, for so many ``times``, and wait until it has."""
        later = asyncio.get_running_loop().call_later
        self._said.setdefault(worker, []).append(job_id)
        self.changed.notify()
        left = times - 1
        timer = later(PAUSE, self.stop, worker, job_id, left) if left else later(GRACE, self._ignore, worker)
        self._stops.setdefault(worker, {})[job_id] = Stop(left, timer)

    async def wait(self, worker: str, ends: Callable[[], bool], seconds: float) -> list[str]:
        """Return the jobs that ``worker`` should stop, waiting for one until ``seconds`` have passed or ``ends()``."""
        await self.changed.wait(lambda: worker in self._said or ends(), seconds)
        return self._said.pop(worker, [])

    def heeded(self, worker: str, in_hand: Collection[str] = ()) -> None:
        """Note that ``worker`` says it has only the jobs ``in_hand``; what it says before it was told is nothing."""
        for job_id, stop in list(self._stops.get(worker, {}).items()):
            if not stop.left and job_id not in in_hand:
                self._drop(worker, job_id)

    def take(self, worker: str, job_id: str) -> None:
        """Say no more: ``worker`` has been given the job again, and would stop that."""
        self._drop(worker, job_id)

    def forget(self, worker: str) -> None:
        """Forget a worker that is gone."""
        for job_id in list(self._stops.get(worker, ())):
            self._drop(worker, job_id)

    def _drop(self, worker: str, job_id: str) -> Stop | None:
        stops = self._stops.get(worker, {})
        if (stop := stops.pop(job_id, None)) is None:
            return None
        stop.timer.cancel()
        if not stops:
            del self._stops[worker]
        if said := [each for each in self._said.pop(worker, ()) if each != job_id]:
            self._said[worker] = said
        return stop

    def _ignore(self, worker: str) -> None:
        self.forget(worker)
        self.on_ignored(worker)
