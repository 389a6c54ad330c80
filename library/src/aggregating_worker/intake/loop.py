"""The job loop: the SDK's own, changed to take a job as soon as one could start, and to start it when it comes.

The SDK's (1.12.0 and 2.0.0rc2, ``rp_scale.JobScaler``) sleeps for a second whenever its worker is full, counts a job
that it has just taken twice, and waits for both of its polls when it is told to stop. So it does about one short job a
second. ``Loop`` overrides only that; the protocol (asking for jobs, handling them, being told to stop one, progress,
prestart) stays the SDK's.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any
from urllib.parse import quote

from aiohttp import ClientTimeout
from runpod.serverless import worker as sdk_worker
from runpod.serverless.modules import rp_scale
from runpod.serverless.modules.rp_handler import is_generator
from runpod.serverless.modules.worker_state import Job

from aggregating_worker import log
from aggregating_worker.delivery.sender import FORGOTTEN
from aggregating_worker.intake.answer import jobs_in
from aggregating_worker.job import JobRunner

METHODS = (
    "set_scale",
    "get_jobs",
    "run_jobs",
    "handle_job",
    "monitor_stop_signals",
    "current_occupancy",
    "handle_shutdown",
    "kill_worker",
)
ATTRIBUTES = (
    "jobs_queue",
    "jobs_fetcher",
    "jobs_fetcher_timeout",
    "jobs_tasks",
    "job_progress",
    "current_concurrency",
    "_shutdown_event",
)
ROUND_TRIP, LAST_MOMENT = 1.0, 0.05
"""Seconds that a worker which is told to stop waits for a job on its way: for the answer to a ping, at most, and then
for an answer that was sent beside it."""
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
"""Seconds before the next take after one that failed, doubled with each failure up to the longest."""
HELD = 0.1
"""Seconds after which an answer without a job was a poll that the platform has held."""
LULL = 0.1
"""If no job has ended for so many seconds, one job at a time is asked for."""


def install(worker: JobRunner) -> None:
    """Have the SDK take jobs with ``Loop`` and send with ``Sender``; if it lacks a seam for one, it uses its own."""
    if worker.sender.install():
        worker.plain = False
        worker.stream.send_parts = worker.sender.send_parts
        worker.stream.send_progress = worker.sender.send_progress
    if missing := [name for name, found in _seams() if not found]:
        log.warning(f"Jobs are taken at the SDK's own pace: its job loop has no {', '.join(missing)} any more.")
    else:
        rp_scale.JobScaler = partial(Loop, worker=worker)


def _seams() -> list[tuple[str, bool]]:
    """Return the names that ``Loop`` overrides or uses, and whether this SDK has each."""
    try:
        scaler = rp_scale.JobScaler({})
        names = set(rp_scale.JobScaler.get_jobs.__code__.co_names)
        made_here = "JobScaler" in sdk_worker.run_worker.__code__.co_names
    except (AttributeError, TypeError):
        return [("JobScaler", False)]
    called = [(f"{name} in get_jobs", name in names) for name in ("set_scale", "jobs_fetcher", "jobs_queue")]
    return [("JobScaler", made_here), *called, *((name, hasattr(scaler, name)) for name in (*METHODS, *ATTRIBUTES))]


class Loop(rp_scale.JobScaler):  # type: ignore[misc]  # the SDK has no types
    """The worker's job loop, under the SDK's ``config``."""

    jobs_fetcher: Any
    jobs_fetcher_timeout: Any

    def __init__(self, config: dict[str, Any], worker: JobRunner) -> None:
        if "handler" in config and not is_generator(config["handler"]):
            sys.exit("The SDK would never answer a job: its handler must be an async generator function itself.")
        super().__init__(config)
        self.jobs_queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._fetch, self._patience = self.jobs_fetcher, self.jobs_fetcher_timeout
        self.jobs_fetcher, self.jobs_fetcher_timeout = self._take, None
        self._worker = worker
        self._slots = worker.slots
        self._most = worker.settings.job_concurrency or self._slots.most_items + worker.settings.lookahead
        """More jobs than items at once: results may wait for the platform."""
        self._jobs: set[asyncio.Task[None]] = set()
        self._coming: set[str] = set()
        self._room = asyncio.Event()
        self._answering = False
        self._pause = FIRST_PAUSE
        self._left = 0
        self._left_last = 0.0
        self._slots.until_delivered = True
        self._slots.on_room = self._room.set
        self._slots.on_end = self._hand_back
        worker.on_start = self._started
        worker.sender.on_forgotten = self._forgotten
        worker.sender.on_refusal = self._end

    async def run(self) -> None:
        """Run until the worker is told to stop and its jobs are done."""
        self._slots.serve()
        await super().run()

    async def set_scale(self) -> None:
        """Wait until there is room for another job. The SDK awaits this before each take."""
        while (wanted := self._wanted()) < 1:
            self._room.clear()
            await self._room.wait()
        self.current_concurrency = self.current_occupancy() + wanted

    def _wanted(self) -> int:
        """Return how many jobs to ask for: none until those that came last have started, and their size is known.

        Then one job, plus one for each that has just finished: many finishes mean small jobs. This keeps a worker from
        hoarding long ones.
        """
        if self._coming:
            return 0
        if time.monotonic() > self._left_last + LULL:
            self._left = 0
        leaving = len(self._jobs) - len(self._slots.room.unmade)
        return min(self._slots.for_jobs(), max(1, self._left + leaving), self._most - len(self._jobs))

    async def _take(self, session: Any, count: int) -> list[dict[str, Any]]:
        """Ask for up to ``count`` jobs. After a failure, pause, longer each time, before the SDK asks again.

        So, too, after an answer that came at once and brought nothing: a poll is meant to be held until there is a job.
        """
        began = time.monotonic()
        try:
            async with self._in_time():
                answer = await self._fetch(_Watched(session, self._answer), count) or []
        except Exception:
            await self._rest()
            raise
        jobs = [job for job in answer if _is_job(job)]
        if len(jobs) < len(answer):
            log.error("The platform answered with something that is not a job.")
        fresh = []
        for job in jobs:
            if job["id"] in self._coming or job["id"] in self.jobs_tasks:  # a stop would reach only one of the two
                log.warning("The platform has given out this job again while it is in hand here.", job["id"])
            else:
                self._coming.add(job["id"])
                fresh.append(job)
        if fresh or time.monotonic() > began + HELD:
            self._pause = FIRST_PAUSE
        else:
            await self._rest()
        self._left = max(0, self._left - len(fresh))
        return fresh

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """Raise ``TimeoutError`` where a poll takes too long. That is found in two steps, the second a moment later.

        By then, a worker that was frozen for so long has read the answer, with jobs in it, that came meanwhile.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as limit:
            alarm = loop.call_later(self._patience, lambda: limit.reschedule(loop.time() + LAST_MOMENT))
            try:
                yield
            finally:
                alarm.cancel()

    async def _rest(self) -> None:
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    @asynccontextmanager
    async def _answer(self, request: Any) -> AsyncIterator[Any]:
        async with request as response:
            self._answering = True
            try:
                yield _Answer(response)
            finally:
                self._answering = False

    async def get_jobs(self, session: Any) -> None:
        """Take jobs until the worker is told to stop; then drop the poll, unless its answer has begun."""
        try:
            async with self._until_stopped(super().get_jobs(session)) as taking:
                pinging = asyncio.create_task(self._ping(session))
                await asyncio.wait({taking, pinging}, timeout=ROUND_TRIP, return_when=asyncio.FIRST_COMPLETED)
                pinging.cancel()
                await asyncio.wait({taking}, timeout=LAST_MOMENT)
                if self._answering:
                    await asyncio.wait({taking})
        finally:
            self.jobs_queue.put_nowait(None)

    async def _ping(self, session: Any) -> None:
        """Ask the platform something that it answers at once: what it had sent before has come when the answer has."""
        url = os.environ.get("RUNPOD_WEBHOOK_PING", "").replace("$RUNPOD_POD_ID", os.environ.get("RUNPOD_POD_ID", ""))
        with suppress(Exception):
            async with session.get(url, params={"job_id": ",".join(self.jobs_tasks)}):  # as the SDK's pings name them
                pass

    async def monitor_stop_signals(self, session: Any) -> None:
        """Ask which jobs to stop until the worker is told to stop; then drop the poll."""
        async with self._until_stopped(super().monitor_stop_signals(session)):
            pass

    @asynccontextmanager
    async def _until_stopped(self, loop: Coroutine[Any, Any, None]) -> "AsyncIterator[asyncio.Task[None]]":
        """Run ``loop`` until the worker is told to stop; then run the block, and cancel ``loop`` if it still runs."""
        task = asyncio.create_task(loop)
        stopped = asyncio.create_task(self._shutdown_event.wait())
        try:
            await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
            yield task
        finally:
            stopped.cancel()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def run_jobs(self, session: Any) -> None:
        """Start each job when it comes; once no more come, return when all are done."""
        self._worker.sender.session = session
        while job := await self.jobs_queue.get():
            task = asyncio.create_task(self.handle_job(session, job))
            self.jobs_tasks[job["id"]] = task
            self._jobs.add(task)
            task.add_done_callback(partial(self._done, job))
        if self._jobs:
            await asyncio.wait(self._jobs)

    def _started(self, job_id: str) -> None:
        self._coming.discard(job_id)
        self._room.set()

    def _done(self, job: dict[str, Any], task: "asyncio.Task[None]") -> None:
        self._jobs.discard(task)
        self._left += 1
        self._left_last = time.monotonic()
        if task.cancelled():  # perhaps before it began: then the SDK has not cleaned up
            self.job_progress.remove(job)
            self.jobs_tasks.pop(job["id"], None)
            with suppress(asyncio.CancelledError):
                task.exception()  # it has the generator of the job in its traceback, which is closed when that goes
        else:
            task.exception()  # the SDK has logged it
        self._started(job["id"])
        self._slots.delivered(job["id"])

    def _forgotten(self, job_id: str) -> None:
        """Cancel a job that the platform does not know any more."""
        task = self.jobs_tasks.get(job_id)
        if task and not task.cancelling():
            log.error(FORGOTTEN, job_id)
            task.cancel()

    def _hand_back(self, reason: str) -> None:
        """Leave the jobs that are not made to another worker; end with status 1 when the others are delivered."""
        for work in self._slots.room.unmade:
            if task := self.jobs_tasks.get(work.job_id):
                task.cancel()
        self._end(reason)

    def _end(self, reason: str) -> None:
        """Take no further job; end with status 1 when those in hand are delivered."""
        if not self._worker.ends:
            log.error(f"The worker ends: {reason}.")
        self._worker.ends = True
        self.kill_worker()

    def handle_shutdown(self, signum: int, frame: Any) -> None:
        """Stop, and wake the event loop, which SDK 1.x leaves waiting for its polls."""
        super().handle_shutdown(signum, frame)
        with suppress(RuntimeError):  # the event loop does not run yet
            asyncio.get_running_loop().call_soon_threadsafe(lambda: None)


class _Watched:
    """A session whose answers to ``get`` pass through ``watch``. How long they may take is for ``_in_time`` to say.

    The SDK's limit of ten minutes ends a poll at once after a longer freeze, and the jobs in its answer would be lost.
    """

    def __init__(self, session: Any, watch: Any) -> None:
        self._session = session
        self._watch = watch

    def get(self, *arguments: Any, **options: Any) -> Any:
        return self._watch(self._session.get(*arguments, **options, timeout=ClientTimeout()))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


class _Answer:
    """An answer to a take, of which every job that can be read is read."""

    def __init__(self, response: Any) -> None:
        self._response = response

    async def json(self) -> Any:
        return jobs_in(await self._response.read())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._response, name)


def _is_job(job: object) -> bool:
    """Whether the SDK can keep ``job`` among its jobs in progress, and so will start it, and its id can be in a URL."""
    if not (isinstance(job, dict) and isinstance(job.get("id"), str) and "input" in job):
        return False
    try:
        return bool(quote(job["id"]) and Job(**job).id == job["id"])
    except Exception:  # half of a surrogate pair, or a key that cannot be an attribute of ``Job``
        return False
