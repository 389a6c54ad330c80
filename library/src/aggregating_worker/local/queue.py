"""The jobs of one endpoint, from state to state (Runpod docs, serverless/endpoints/job-states)."""

import asyncio
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

from aggregating_worker.local.body import encode
from aggregating_worker.local.job import Job, Signal
from aggregating_worker.local.stops import Stops

RETRIES = 3
"""How often a job goes back to the queue when its worker dies; then it fails, or it would kill workers for ever."""
KEPT_FOR = {"run": 1_800.0, "runsync": 60.0, "batch": 604_800.0}
"""Seconds that an ended job is kept (Runpod docs, serverless/endpoints/send-requests)."""
TTL = {"run": 86_400_000, "runsync": 86_400_000, "batch": 604_800_000}
"""Milliseconds that a job is kept from its submission on, if its policy does not say."""
MEMORY = 512 * 2**20
"""Bytes of requests and results that are kept at most; the jobs that ended first are dropped for new ones."""
DROPPED = b'"error":"The result is gone: the local endpoint keeps the latest 512 MiB."'


class Full(Exception):
    """There is no room for another job until others have ended."""


class Queue:
    """All jobs of the endpoint, on one event loop."""

    def __init__(self, memory: int = MEMORY) -> None:
        self.jobs: dict[str, Job] = {}
        self.counts: Counter[str] = Counter()
        self.stops = Stops()
        self.on_final: Callable[[Job], None] = lambda _: None
        self.watchers: list[Callable[..., None]] = []
        """Each is called with every job that changes, and with its new chunk if it has one."""
        self._memory = memory
        self._used = 0
        self._waiting: OrderedDict[str, Job] = OrderedDict()
        self._held: defaultdict[str, dict[str, Job]] = defaultdict(dict)
        self._ended: dict[str, Job] = {}
        self._arrived = Signal()
        self._asking: list[object] = []
        self._spared: set[str] = set()
        self._retired: set[str] = set()

    @property
    def waiting(self) -> int:
        """The number of jobs that no worker has taken."""
        return len(self._waiting)

    @property
    def held(self) -> list[Job]:
        """The jobs that workers have taken and not answered."""
        return [job for jobs in self._held.values() for job in jobs.values()]

    def held_by(self, worker: str) -> list[Job]:
        """Return the jobs that ``worker`` has taken and not answered."""
        return [*self._held[worker].values()] if worker in self._held else []

    def submit(self, job: Job) -> Job:
        """Queue a job. Raises ``Full``."""
        self.submit_all([job])
        return job

    def submit_all(self, jobs: list[Job]) -> None:
        """Queue all of these jobs, or none. Raises ``Full``."""
        if not self.fits(sum(job.size for job in jobs)):
            raise Full(f"the queue holds {self._used >> 20} MiB of jobs that have not ended")
        for job in jobs:
            self.jobs[job.id] = job
            self._used += job.size
            job.queued = time.monotonic()
            self._enqueue(job)
            self.expire(job, job.limit("ttl", TTL[job.operation]))

    def expire(self, job: Job, seconds: float) -> None:
        """Forget a job in ``seconds``, whatever its state is then."""
        if job.expiry is not None:
            job.expiry.cancel()
        job.expiry = asyncio.get_running_loop().call_later(seconds, self.forget, job)

    def retry(self, job: Job) -> None:
        """Queue a failed job again, without its results."""
        self._ended.pop(job.id, None)
        self._settle(job, b"")
        job.retries = 0
        self._clear(job)
        job.queued, job.taken, job.ended, job.worker = time.monotonic(), None, None, None
        self._enqueue(job)

    def purge(self) -> int:
        """Cancel the jobs that no worker has taken; return how many."""
        purged = [*self._waiting.values()]
        for job in purged:
            self._end(job, "CANCELLED")
        return len(purged)

    def cancel(self, job: Job, status: str = "CANCELLED") -> None:
        """End a job now, unless it has ended; the worker that has it is told to stop."""
        if job.final:
            return
        if job.status == "IN_PROGRESS" and job.worker is not None:
            self.stops.stop(job.worker, job.id)
        self._end(job, status)

    async def take(self, worker: str, most: int, seconds: float, gone: Callable[[], Awaitable[bool]]) -> list[Job]:
        """Give ``worker`` up to ``most`` jobs, or its share if other workers wait too; wait up to ``seconds`` for one.

        The worker that has waited longest comes first, even if another asks before it has heard of a new job.
        ``gone`` tells whether a worker that had to wait has hung up: a job given to it would be lost.
        """
        if worker in self._spared:
            await self._arrived.wait(lambda: worker in self._retired, seconds)
            return []
        place = object()
        waits = len(self._waiting) <= len(self._asking)
        self._asking.append(place)
        try:
            await self._arrived.wait(
                lambda: self._asking.index(place) < len(self._waiting) or worker in self._retired, seconds
            )
        finally:
            self._asking.remove(place)
            self._arrived.notify()  # the others have moved up in the line
        if worker in self._retired:
            return []
        share = -(-len(self._waiting) // (len(self._asking) + 1))
        jobs = [self._waiting.popitem(last=False)[1] for _ in range(min(most, share))]
        if waits and jobs:  # meanwhile, others may take the next jobs, and these may be cancelled
            hung_up = await gone()
            jobs = [job for job in jobs if job.status == "IN_QUEUE"]
            if hung_up:
                for job in reversed(jobs):
                    self._enqueue(job, first=True)
                return []
        for job in jobs:
            self.stops.take(worker, job.id)
            job.status, job.worker, job.taken = "IN_PROGRESS", worker, time.monotonic()
            self._held[worker][job.id] = job
            self._next(job, job.limit("executionTimeout", 600_000), self._time_out)
            self._tell(job)
        return jobs

    async def stopped(self, worker: str, seconds: float) -> list[str]:
        """Return the ids of the jobs that ``worker`` should stop; wait up to ``seconds`` for one."""
        return await self.stops.wait(worker, lambda: worker in self._retired, seconds)

    def stream(self, job: Job, chunk: bytes) -> None:
        """Keep a chunk, ``{"output": …}``, until a caller fetches it."""
        job.chunks.append(chunk)
        self._grow(job, len(chunk))
        while not self.fits(0) and job.chunks:
            self._grow(job, -len(job.chunks.popleft()))
        self._tell(job, chunk)

    def drain(self, job: Job) -> list[bytes]:
        """Return the chunks that no caller has fetched yet, and keep them no longer."""
        chunks = [*job.chunks]
        self._clear(job)
        return chunks

    def done(self, job: Job, outcome: bytes, status: str) -> None:
        """Take a worker's answer, as JSON without braces: progress if ``status`` is ``IN_PROGRESS``, else the end."""
        self._settle(job, outcome)
        if status == "IN_PROGRESS":
            job.status = status  # which a job that had ended has again, for good: see ``worker_api``
            self._tell(job)
        else:
            self._end(job, status)

    def forget(self, job: Job) -> None:
        """Drop a job and its results, whatever its state is."""
        if job.id not in self._ended:
            self.cancel(job)
        for timer in (job.expiry, job.timer):
            if timer is not None:
                timer.cancel()
        self._ended.pop(job.id, None)
        if self.jobs.pop(job.id, None):
            self._used -= job.size
            job.chunks.clear()
            job.request, job.outcome = b"", DROPPED  # for those who still hold the job

    def fits(self, size: int) -> bool:
        """Make room for ``size`` bytes by forgetting the jobs that ended first; return whether there is enough."""
        while self._used + size > self._memory and self._ended:
            self.forget(next(iter(self._ended.values())))
        return self._used + size <= self._memory

    def close(self) -> None:
        """Answer all who wait: the endpoint is about to stop."""
        for signal in (self._arrived, self.stops.changed, *(job.changed for job in self.jobs.values())):
            signal.end()

    def spare(self, worker: str) -> None:
        """Give ``worker`` no more jobs, while it finishes those that it has."""
        self._spared.add(worker)

    def retire(self, worker: str) -> None:
        """Give ``worker`` no more jobs, and answer its polls at once, so that it can exit."""
        self._retired.add(worker)
        self._arrived.notify()
        self.stops.changed.notify()

    def lose(self, worker: str) -> None:
        """Put the jobs of a dead worker back at the head of the queue."""
        self.retire(worker)
        self.stops.forget(worker)
        for job in reversed(self.held_by(worker)):
            if job.retries == RETRIES:
                self._settle(job, encode({"error": f"job timed out after {RETRIES} retries"})[1:-1])
                self._end(job, "FAILED")
                continue
            job.retries += 1
            self.counts["retried"] += 1
            self._settle(job, b"")
            self._clear(job)
            self._release(job)
            self._enqueue(job, first=True)

    def _enqueue(self, job: Job, *, first: bool = False) -> None:
        job.status = "IN_QUEUE"
        if job.timer is not None:
            job.timer.cancel()
        self._waiting[job.id] = job
        if first:
            self._waiting.move_to_end(job.id, last=False)
        self._arrived.notify()
        self._tell(job)

    def _end(self, job: Job, status: str) -> None:
        self._waiting.pop(job.id, None)
        self._release(job)
        job.status, job.ended = status, time.monotonic()
        self.counts[status] += 1
        self._ended[job.id] = job
        self._next(job, KEPT_FOR[job.operation], self.forget)
        self._tell(job)
        self.on_final(job)
        self.fits(0)

    def _release(self, job: Job) -> None:
        if job.worker is not None and (held := self._held.get(job.worker)) is not None:
            held.pop(job.id, None)
            if not held:
                del self._held[job.worker]

    def _tell(self, job: Job, *chunk: Any) -> None:
        job.changed.notify()
        for watcher in self.watchers:
            watcher(job, *chunk)

    def _time_out(self, job: Job) -> None:
        self._settle(job, b'"error":"executionTimeout exceeded"')
        self.cancel(job, "TIMED_OUT")

    def _settle(self, job: Job, outcome: bytes) -> None:
        self._grow(job, len(outcome) - len(job.outcome))
        job.outcome = outcome

    def _clear(self, job: Job) -> None:
        self._grow(job, -sum(map(len, job.chunks)))
        job.chunks.clear()

    def _grow(self, job: Job, size: int) -> None:
        job.size += size
        self._used += size

    @staticmethod
    def _next(job: Job, seconds: float, act: Callable[[Job], None]) -> None:
        if job.timer is not None:
            job.timer.cancel()
        job.timer = asyncio.get_running_loop().call_later(seconds, act, job)
