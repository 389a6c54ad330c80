"""The jobs that workers should stop, and what happens to a worker that does not."""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass

from aggregating_worker.local.job import Signal

TIMES = 3
"""How often a worker is told: the SDK (1.12.0, ``rp_scale``) ignores a stop for a job that it has taken but not begun,
which takes up to 0.1 s."""
PAUSE = 0.5
"""Seconds between two of these."""
GRACE = 10.0
"""Seconds that a worker has to stop a job after the last of these: more than two of its pings."""


@dataclass
class Stop:
    """One job that a worker should stop."""

    left: int
    """How often the worker is still to be told."""
    timer: asyncio.TimerHandle


class Stops:
    """The jobs to stop, by worker; ``on_ignored`` is called with a worker that has not stopped one after ``GRACE``.

    A worker does not answer a stop. It has stopped the job when its next ping does not name that job.
    """

    def __init__(self) -> None:
        self.on_ignored: Callable[[str], None] = lambda _: None
        self.changed = Signal()
        self._stops: dict[str, dict[str, Stop]] = {}
        self._said: dict[str, list[str]] = {}

    @property
    def open(self) -> bool:
        """Whether any worker has a job that it should stop."""
        return bool(self._stops)

    def stop(self, worker: str, job_id: str, times: int = TIMES) -> None:
        """Tell ``worker`` this many ``times`` to stop the job; then it has ``GRACE`` to do so."""
        later = asyncio.get_running_loop().call_later
        self._said.setdefault(worker, []).append(job_id)
        self.changed.notify()
        left = times - 1
        timer = later(PAUSE, self.stop, worker, job_id, left) if left else later(GRACE, self._ignore, worker)
        self._stops.setdefault(worker, {})[job_id] = Stop(left, timer)

    async def wait(self, worker: str, ends: Callable[[], bool], seconds: float) -> list[str]:
        """Return the jobs that ``worker`` should stop; wait for one until ``seconds`` have passed or ``ends()``."""
        await self.changed.wait(lambda: worker in self._said or ends(), seconds)
        return self._said.pop(worker, [])

    def heeded(self, worker: str, in_hand: Collection[str] = ()) -> None:
        """Note that ``worker`` has only the jobs ``in_hand``; it counts once it was told for the last time."""
        for job_id, stop in list(self._stops.get(worker, {}).items()):
            if not stop.left and job_id not in in_hand:
                self._drop(worker, job_id)

    def take(self, worker: str, job_id: str) -> None:
        """Drop the stop: ``worker`` is given the job again, and would stop its new run."""
        self._drop(worker, job_id)

    def forget(self, worker: str) -> None:
        """Forget the stops for a worker that is gone."""
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
