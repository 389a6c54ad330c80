"""Why a job is still queued: said after a while, and then each minute, from what ``/health`` answers."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from aggregating_worker.client.http import CallFailed
from aggregating_worker.sentence import counted

AFTER = 20.0
"""Seconds in the queue after which it is said why."""
AGAIN = 60.0
"""Seconds until it is said again."""
PATIENCE = 5.0
"""Seconds that ``/health`` may take: the answer is worth no more."""

T = TypeVar("T")


class Waiting:
    """Tells ``told`` why jobs of an endpoint wait, whose ``health`` is asked for: once for all jobs of a client."""

    def __init__(self, health: Callable[[], Awaitable[Mapping[str, Any]]], told: Callable[[str], object]) -> None:
        self._health = health
        self._told = told
        self._reason = ""
        self._next = 0.0

    async def explain(self, since: float, *, again: bool = False) -> str:
        """Return why a job waits that has been queued ``since`` then (monotonic), or "" if that is not long enough.

        ``again``: a worker had taken it before.
        """
        now = time.monotonic()
        if now < since + AFTER:
            return ""
        if now >= self._next:
            self._next = now + AGAIN
            health = await self._asked()
            back = " The worker that had it is gone." if again else ""
            self._reason = f"A job has waited in the queue for {now - since:.0f} s.{back} {why(health)}"
            self._told(self._reason)
        return self._reason

    async def during(self, call: Awaitable[T]) -> T:
        """Await a ``call`` that is answered once a job has ended, and tell why if it may still be queued meanwhile."""
        since = time.monotonic()
        telling = asyncio.create_task(self._tell(since))
        try:
            return await call
        except CallFailed as error:
            if since + AFTER <= time.monotonic() < self._next:
                error.add_note(self._reason)
            raise
        finally:
            telling.cancel()

    async def _tell(self, since: float) -> None:
        await asyncio.sleep(AFTER)
        while True:
            if _counts(await self._asked(), "jobs").get("inQueue"):
                await self.explain(since)
            await asyncio.sleep(AGAIN)

    async def _asked(self) -> Mapping[str, Any]:
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._health()
        except (CallFailed, TimeoutError):
            return {}


class Wait:
    """One job's wait in the queue, which may begin again: its worker may die."""

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self._since = 0.0
        self._started = False
        self._reason = ""

    async def see(self, status: str) -> None:
        """Take note of the job's state, and tell why it waits if it has waited for long."""
        if status == "IN_QUEUE":
            self._since = self._since or time.monotonic()
            self._reason = await self._waiting.explain(self._since, again=self._started)
        elif status == "IN_PROGRESS":
            self._since, self._started, self._reason = 0.0, True, ""

    def blame(self, error: CallFailed) -> None:
        """Add to ``error`` why the job waited, if it never started to run."""
        if self._reason:
            error.add_note(self._reason)


def why(health: Mapping[str, Any]) -> str:
    """Return sentences that say why a job may be waiting, from an answer of ``/health``.

    What the states of workers mean: Runpod docs, serverless/workers/overview; that the platform turns an endpoint down
    which nobody calls: serverless/endpoints/endpoint-configurations.
    """
    if not isinstance(health.get("workers"), Mapping):
        return "The endpoint does not say why."
    jobs, workers = _counts(health, "jobs"), _counts(health, "workers")
    if not any(workers.values()):
        return (
            "The endpoint has no workers. If its max workers are 0, raise them: the platform turns an endpoint down "
            "to that when nobody has called it for some days."
        )
    said = []
    if count := workers.get("unhealthy"):
        said.append(f"{counted(count, 'worker')} died at the start: the log, in the console, has the reason.")
    if count := workers.get("throttled"):
        said.append(
            f"{counted(count, 'worker')} throttled: no machine of the chosen kind is free. More kinds or regions help."
        )
    if count := workers.get("initializing"):
        said.append(f"{counted(count, 'worker')} starting, which takes as long as fetching the image and load().")
    if count := workers.get("running"):
        waiting = counted(jobs.get("inQueue", 0), "job")
        said.append(f"{counted(count, 'worker')} busy, and {waiting} in the queue: more max workers take more at once.")
    return " ".join(said) or "A worker is there that has not taken it yet."


def _counts(health: Mapping[str, Any], of: str) -> dict[str, int]:
    counts = health.get(of)
    return {name: count for name, count in counts.items() if type(count) is int} if isinstance(counts, dict) else {}
