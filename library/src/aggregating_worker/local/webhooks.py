"""Tells the webhooks of jobs how they ended (Runpod docs, serverless/endpoints/send-requests)."""

import asyncio
import json
from collections.abc import Callable

import httpx2

from aggregating_worker.local.body import Body, members
from aggregating_worker.local.job import Job, join

TRIES = 3
PAUSE = 10.0
"""Seconds between two of these."""
SECONDS = 30.0
"""How long a webhook may take to answer."""
AT_ONCE = 100
"""Webhooks that are called at the same time; the others wait."""
ROOM = 128 * 2**20
"""Bytes that all webhooks may hold which have not answered."""
OWN_BYTES = 16 * 2**10
"""Bytes that each of them takes beside what is sent, roughly."""


class Webhooks:
    """Calls webhooks, and says with ``say`` which could not be told."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._client: httpx2.AsyncClient | None = None
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._held = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def call(self, job: Job) -> None:
        """Tell the webhook of ``job``, if it has one, its final state and its request, in the background."""
        if not job.webhook:
            return
        request = b"{%s}" % job.request
        asked = members(Body(json.loads(request), request), {"input", "webhook"})  # what else there is may be secret
        told = join(job.facts(), b",".join(filter(None, (asked, job.outcome))))
        size = len(told) + OWN_BYTES
        if self._held + size > ROOM:
            self._say(f"The webhook of job {job.id} is not called: too many others have not answered yet.")
            return
        self._held += size
        self._tasks.add(task := asyncio.create_task(self._tell(job.id, job.webhook, told)))
        task.add_done_callback(lambda task: self._done(task, size))

    def _done(self, task: "asyncio.Task[None]", size: int) -> None:
        self._tasks.discard(task)
        self._held -= size

    async def _tell(self, job_id: str, url: str, told: bytes) -> None:
        for left in reversed(range(TRIES)):
            async with self._turns:
                why = await self._post(url, told)
            if why is None:
                return
            if left:
                await asyncio.sleep(PAUSE)
        self._say(f"The webhook of job {job_id} was called {TRIES} times: {why}.")

    async def _post(self, url: str, told: bytes) -> str | None:
        """Return None if the webhook has answered 200, or else what it did."""
        if self._client is None:  # it takes some 20 ms to make, and few need it; it keeps no connection open
            self._client = httpx2.AsyncClient(timeout=None, limits=httpx2.Limits(max_keepalive_connections=0))
        try:
            headers = {"Content-Type": "application/json"}
            async with (
                asyncio.timeout(SECONDS),
                self._client.stream("POST", url, content=told, headers=headers) as answer,
            ):
                return None if answer.status_code == 200 else f"it answered {answer.status_code}"
        except TimeoutError:
            return f"no answer within {SECONDS:.0f} s"
        except Exception as error:  # the address is the caller's, and may be anything
            return str(error) or type(error).__name__
