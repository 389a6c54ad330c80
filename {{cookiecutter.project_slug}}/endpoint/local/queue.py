"""The jobs of one endpoint and the states they pass through (Runpod docs, serverless/endpoints/job-states)."""

import asyncio
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

RETRIES = 3
"""How often a job whose worker died goes back to the queue before it fails; a job that kills workers must end."""
KEPT_FOR = {"run": 1_800.0, "runsync": 60.0}
"""Seconds that a finished job can be asked for (Runpod docs, serverless/endpoints/send-requests)."""
STOPS_SAID = 3
"""How often a worker is told to stop a job: the SDK (1.12.0, ``rp_scale``) ignores it until it has begun the job, up to
0.1 s after taking it."""
FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")


class Signal:
    """Wakes whoever waits for something to become true, on one event loop."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._ended = False

    def end(self) -> None:
        """Keep nobody waiting, from now on."""
        self._ended = True
        self.notify()

    def notify(self) -> None:
        """Have all waiters look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, condition: Callable[[], bool], seconds: float) -> None:
        """Return once ``condition()`` holds, ``seconds`` have passed, or there is nothing more to wait for."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not (condition() or self._ended):
                    await self._changed.wait()


@dataclass(eq=False)
class Job:
    """One request and all that has come of it. Times are seconds of ``time.monotonic``."""

    operation: str
    request: dict[str, Any]
    id: str = ""
    status: str = "IN_QUEUE"
    worker: str | None = None
    retries: int = 0
    queued: float = field(default_factory=time.monotonic)
    taken: float | None = None
    ended: float | None = None
    outcome: dict[str, Any] = field(default_factory=dict)
    chunks: deque[Any] = field(default_factory=deque)
    changed: Signal = field(default_factory=Signal)
    expiry: asyncio.TimerHandle | None = None
    timer: asyncio.TimerHandle | None = None

    def __post_init__(self) -> None:
        self.id = ("sync-" if self.operation == "runsync" else "") + f"{uuid.uuid4()}-u1"

    @property
    def final(self) -> bool:
        """Whether nothing more can come of it."""
        return self.status in FINAL

    def policy(self, name: str, milliseconds: int) -> float:
        """Return a limit of the request's ``policy`` in seconds; ``milliseconds`` is the platform's default."""
        limit: float = self.request.get("policy", {}).get(name, milliseconds)
        return limit / 1000

    def state(self) -> dict[str, Any]:
        """Return what ``/status`` answers; ``delayTime`` and ``executionTime`` are milliseconds."""
        state: dict[str, Any] = {"id": self.id, "status": self.status, **self.outcome}
        if self.taken is not None:
            state |= {"delayTime": round((self.taken - self.queued) * 1000), "workerId": self.worker}
            if self.ended is not None:
                state["executionTime"] = round((self.ended - self.taken) * 1000)
        if self.retries:
            state["retries"] = self.retries
        return state

    def handout(self) -> dict[str, Any]:
        """Return what a worker is given: the request without what concerns the queue alone."""
        return {"id": self.id, **{key: value for key, value in self.request.items() if key != "policy"}}


class Queue:
    """All jobs of the endpoint, on one event loop."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.counts: Counter[str] = Counter()
        self.on_final: Callable[[Job], None] = lambda _: None
        self.watchers: list[Callable[..., None]] = []
        """Called with each job that changes, and with the chunk if it is one that came."""
        self._waiting: deque[Job] = deque()
        self._arrived = Signal()
        self._stops: dict[str, list[str]] = {}
        self._stopping = Signal()
        self._retired: set[str] = set()

    def submit(self, operation: str, request: dict[str, Any]) -> Job:
        """Queue ``request``, the checked body of ``/run`` or ``/runsync``."""
        job = Job(operation, request)
        self.jobs[job.id] = job
        self._enqueue(job)
        job.expiry = asyncio.get_running_loop().call_later(job.policy("ttl", 86_400_000), self._forget, job)
        return job

    def retry(self, job: Job) -> None:
        """Queue a failed job again, without what came of it."""
        job.outcome, job.retries = {}, 0
        job.chunks.clear()
        job.queued, job.taken, job.ended, job.worker = time.monotonic(), None, None, None
        self._enqueue(job)

    def purge(self) -> int:
        """Drop the jobs that no worker has taken; return how many."""
        purged = len(self._waiting)
        while self._waiting:
            self._end(self._waiting[0], "CANCELLED")
        return purged

    def cancel(self, job: Job, status: str = "CANCELLED") -> None:
        """End a job now, unless it has ended; a worker that has it is told to stop."""
        if job.final:
            return
        if job.status == "IN_PROGRESS" and job.worker is not None:
            self._stop(job.worker, job.id, STOPS_SAID)
        self._end(job, status)

    async def take(self, worker: str, most: int, seconds: float, gone: Callable[[], Any]) -> list[Job]:
        """Give ``worker`` up to ``most`` jobs, waiting up to ``seconds`` for one.

        ``gone`` (awaited) tells whether the asker has hung up: a job handed to nobody would be lost.
        """
        await self._arrived.wait(lambda: bool(self._waiting) or worker in self._retired, seconds)
        if worker in self._retired or not self._waiting or await gone():
            return []
        jobs = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        for job in jobs:
            job.status, job.worker, job.taken = "IN_PROGRESS", worker, time.monotonic()
            self._next(job, job.policy("executionTimeout", 600_000), self._time_out)
            self._tell(job)
        return jobs

    async def stops(self, worker: str, seconds: float) -> list[str]:
        """Return the ids of the jobs that ``worker`` should stop, waiting up to ``seconds`` for one."""
        await self._stopping.wait(lambda: worker in self._stops or worker in self._retired, seconds)
        return self._stops.pop(worker, [])

    def stream(self, job: Job, chunk: Any) -> None:
        """Keep a chunk until a caller fetches it."""
        job.chunks.append(chunk)
        self._tell(job, chunk)

    def done(self, job: Job, body: dict[str, Any]) -> None:
        """Take a worker's answer: a progress update, the output, or an error."""
        job.outcome = {key: body[key] for key in ("output", "error") if key in body}
        if body.get("status") == "IN_PROGRESS":
            self._tell(job)
        else:
            self._end(job, "FAILED" if "error" in body else "COMPLETED")

    def held_by(self, worker: str) -> list[Job]:
        """Return the jobs that ``worker`` has taken and not answered."""
        return [job for job in self.jobs.values() if job.worker == worker and job.status == "IN_PROGRESS"]

    def close(self) -> None:
        """Answer all who wait for something: the endpoint is about to stop."""
        for signal in (self._arrived, self._stopping, *(job.changed for job in self.jobs.values())):
            signal.end()

    def retire(self, worker: str) -> None:
        """Hand ``worker`` no more jobs, and answer its polls at once, so that it can exit."""
        self._retired.add(worker)
        self._arrived.notify()
        self._stopping.notify()

    def lose(self, worker: str) -> None:
        """Put the jobs of a dead worker back at the head of the queue."""
        self.retire(worker)
        for job in reversed(self.held_by(worker)):
            if job.retries == RETRIES:
                job.outcome = {"error": f"job timed out after {RETRIES} retries"}
                self._end(job, "FAILED")
                continue
            job.retries += 1
            self.counts["retried"] += 1
            job.chunks.clear()
            self._enqueue(job, first=True)

    def _stop(self, worker: str, job_id: str, times: int) -> None:
        self._stops.setdefault(worker, []).append(job_id)
        self._stopping.notify()
        if times > 1:
            asyncio.get_running_loop().call_later(0.5, self._stop, worker, job_id, times - 1)

    def _enqueue(self, job: Job, *, first: bool = False) -> None:
        job.status = "IN_QUEUE"
        if job.timer is not None:
            job.timer.cancel()
        (self._waiting.appendleft if first else self._waiting.append)(job)
        self._arrived.notify()
        self._tell(job)

    def _end(self, job: Job, status: str) -> None:
        if job in self._waiting:
            self._waiting.remove(job)
        job.status, job.ended = status, time.monotonic()
        self.counts[status] += 1
        self._next(job, KEPT_FOR[job.operation], self._forget)
        self._tell(job)
        self.on_final(job)

    def _tell(self, job: Job, *chunk: Any) -> None:
        job.changed.notify()
        for watcher in self.watchers:
            watcher(job, *chunk)

    def _time_out(self, job: Job) -> None:
        job.outcome = {"error": "executionTimeout exceeded"}
        self.cancel(job, "TIMED_OUT")

    def _forget(self, job: Job) -> None:
        self.cancel(job)
        self.jobs.pop(job.id, None)
        for timer in (job.expiry, job.timer):
            if timer is not None:
                timer.cancel()

    @staticmethod
    def _next(job: Job, seconds: float, act: Callable[[Job], None]) -> None:
        if job.timer is not None:
            job.timer.cancel()
        job.timer = asyncio.get_running_loop().call_later(seconds, act, job)
