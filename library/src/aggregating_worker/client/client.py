"""The client: submits a job, follows it, and returns each of its envelopes once."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, Literal, Self, overload
from urllib.parse import quote

import httpx2

from aggregating_worker.client.api import Api
from aggregating_worker.client.batch import Batches
from aggregating_worker.client.envelopes import Envelope, Parts, encode, failure, is_envelope, is_parts
from aggregating_worker.client.files import save
from aggregating_worker.client.http import CallFailed, Http, JobUnknown
from aggregating_worker.client.job import (
    FINAL,
    AnotherWorker,
    Job,
    JobFailed,
    checked,
    first_index,
    item_count,
    output,
    streamed,
)
from aggregating_worker.client.waiting import Wait, Waiting
from aggregating_worker.sentence import one_line

LOG = logging.getLogger(__name__)

RUNSYNC_WAIT = 90.0
"""Seconds for which ``/runsync`` may hold its answer back (Runpod docs, serverless/endpoints/operation-reference)."""
LONGEST_PAUSE = 2.0
"""Seconds at most between two questions about a job that has nothing new."""
FETCHES = 8
"""Results fetched from a bucket at once, for one job."""
PATIENCE = 5.0
"""Seconds spent on cancelling a job that is no longer waited for."""
LOOKED = 2.0
"""Seconds between two looks at what items say of their progress."""
SETTLED = 5.0
"""Seconds for which the end of a job is waited for that has nothing left to bring."""

Then = Callable[[Envelope], Awaitable[Envelope]]
"""Called with each envelope as it arrives, with several at once; what it returns is passed on."""
Progress = Callable[[list[Any]], object]
"""Called with what running items say of their progress, ``{"index": 3, "value": …}`` each, now and then."""


class Client:
    """Calls one endpoint, from any number of tasks of one event loop.

    >>> async with Client() as client:
    ...     async for envelope in client.stream({"input": {"items": ["I love it!"]}}):
    ...         print(envelope)

    The endpoint's id, the key and the address default to ``RUNPOD_ENDPOINT_ID``, ``RUNPOD_API_KEY`` and
    ``RUNPOD_ENDPOINT_BASE_URL``. Every error is a ``CallFailed``; a job that ends without results raises its subclass
    ``JobFailed``, and one that may be queued, although no answer says so, ``JobUnknown``. An item's own failure is in
    its envelope. A result that is stored in a bucket is fetched, so that an envelope has either a ``result`` or a
    ``failure``. If nobody waits for a job any more, because a task was cancelled or a stream closed before its end, the
    job is cancelled.

    ``told`` gets sentences for a person while jobs go on, such as why one is still queued; by default the log does.
    """

    def __init__(
        self,
        endpoint_id: str | None = None,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        told: Callable[[str], object] = LOG.warning,
    ) -> None:
        self._api = Api(endpoint_id, api_key, base_url, told)
        # No key is sent: a bucket must not see it, and a stored result's URL carries its own permission.
        self._bucket = Http(httpx2.AsyncClient(follow_redirects=True, max_redirects=5))
        self.told = told
        self.leaves_jobs = False
        """Whether a job may go on that nobody waits for any more: it could not be cancelled."""
        self._waiting = Waiting(lambda: self._api.call("GET", "/health"), told)
        self.batches = Batches(self._api)
        self.endpoint_id = self._api.endpoint_id

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._api.close()
        await self._bucket.close()

    async def run(self, job: Job, *, then: Then | None = None) -> list[Envelope]:
        """Run ``job`` and return its envelopes, one for each item and in order, each as ``then`` returned it."""
        return [envelope async for envelope in self.stream(job, then=then)]

    async def runsync(self, job: Job, *, then: Then | None = None) -> list[Envelope]:
        """Like ``run``, but with ``/runsync``: one call, if the job takes at most 90 s."""
        state = await self._waiting.during(self._api.submit("runsync", encode(job), RUNSYNC_WAIT))
        items, first = item_count(job), first_index(job)
        if state["status"] in FINAL:
            return [envelope async for envelope in self.fetched(output(state, items, first), then)]
        return [envelope async for envelope in self.results(state["id"], items, first, then=then)]

    @overload
    def stream(
        self, job: Job, *, parts: Literal[False] = False, then: Then | None = None, progress: Progress | None = None
    ) -> AsyncGenerator[Envelope, None]: ...

    @overload
    def stream(
        self, job: Job, *, parts: bool, then: Then | None = None, progress: Progress | None = None
    ) -> AsyncGenerator[Any, None]: ...

    async def stream(
        self, job: Job, *, parts: bool = False, then: Then | None = None, progress: Progress | None = None
    ) -> AsyncGenerator[Envelope | Parts, None]:
        """Run ``job`` and yield its envelopes in order, each as soon as it is ready.

        With ``parts``, also yield what items yield while they run: an item's parts come in order and before its
        envelope, which has all of them again. If the worker dies, the item and its parts start again. What a worker
        streams that answers in an older form is yielded, too, as it came; at its end such a job is ``AnotherWorker``,
        whose ``output`` is the answer. With ``progress``, ``/status`` is asked, too.
        """
        job_id = await self.submit(job)
        arriving = self._arriving(job_id, item_count(job), first_index(job), then)
        looking = asyncio.create_task(self._look(job_id, progress)) if progress else None
        try:
            async with aclosing(arriving):
                async for each in arriving:
                    if parts or is_envelope(each):
                        yield each
        finally:
            if looking:
                looking.cancel()

    async def submit(self, job: Job | bytes) -> str:
        """Queue ``job``, or the body of one, and return its id. Its results are kept for 30 minutes after its end.

        Raises ``JobUnknown`` if it may be queued, but no answer says so: it is paid for once only if nobody sends it
        again. Any other ``CallFailed`` means that it is not queued. If this is cancelled, so is the job.
        """
        body = job if isinstance(job, bytes) else encode(job)
        sending = asyncio.create_task(self._api.submit("run", body))
        try:
            return str((await asyncio.shield(sending))["id"])
        except asyncio.CancelledError as cancelled:
            try:
                async with asyncio.timeout(PATIENCE):
                    job_id = (await sending)["id"]
            except (JobUnknown, TimeoutError):
                cancelled.add_note(sentence := "A job that was being sent may be queued.")
                self._is_left(sentence)
            except CallFailed:
                pass  # it is not queued
            else:
                await self._give_up(job_id)
            raise

    async def _give_up(self, job_id: str) -> None:
        """Cancel a job that nobody waits for any more, or tell that it goes on."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self.cancel(job_id)
        except JobFailed:
            pass  # the endpoint does not have it
        except (CallFailed, TimeoutError):
            self._is_left(f"Job {one_line(job_id)} could not be cancelled, and may go on.")

    def _is_left(self, sentence: str) -> None:
        self.leaves_jobs = True
        self.told(sentence)

    async def status(self, job_id: str) -> dict[str, Any]:
        """Return the answer of ``/status``: ``status``, and at the end ``output`` or ``error``."""
        return await self._ask("GET", "status", job_id)

    async def cancel(self, job_id: str) -> None:
        """Cancel a job, whether it waits or runs."""
        await self._ask("POST", "cancel", job_id)

    async def save_files(self, envelope: Envelope, folder: Path) -> Envelope:
        """Write the files of ``envelope`` to ``folder``, and return it with a ``path`` in place of their data or URL.

        File N of an item is called ``INDEX-N.EXT``. If a file cannot be fetched or decoded, what is returned is a
        failure ``ResultUnavailable``. Raises ``OSError`` if one cannot be written.
        """
        return await save(envelope, Path(folder), self._bucket)

    async def results(
        self, job_id: str, items: int | None = None, first: int = 0, *, then: Then | None = None
    ) -> AsyncGenerator[Envelope, None]:
        """Yield the envelopes of a job in order, each once, as soon as it is ready and as ``then`` returned it.

        ``items`` is how many the job has, if known: if the stream had them all, the aggregate is not asked for.
        ``first`` is the index of the first item.
        """
        arriving = self._arriving(job_id, items, first, then)
        async with aclosing(arriving):
            async for each in arriving:
                if is_envelope(each):
                    yield each

    async def _arriving(
        self, job_id: str, items: int | None, first: int, then: Then | None
    ) -> AsyncGenerator[Envelope | Parts, None]:
        """Yield a job's envelopes in order, and between them parts as they arrive.

        ``/stream`` hands out each chunk once. Chunks that a broken connection lost, that were too large to be streamed
        or that were handed out before are taken from the aggregate, once the job has ended. If a worker dies, its job
        starts again and streams everything again: what belongs to items whose envelopes are known is skipped.
        """
        given, early, status, pause = first, dict[int, Envelope](), "", 0.0
        wait, complete, deadline = Wait(self._waiting), False, None
        try:
            while True:
                try:
                    async with asyncio.timeout_at(deadline):
                        state = await self._ask("GET", "stream", job_id)
                except TimeoutError:  # its worker could not deliver the end, but all that it brings is here
                    break
                status, news = state["status"], False
                await wait.see(status)
                for each in streamed(state):
                    if not (is_envelope(each) or is_parts(each)):
                        yield each
                        news = True
                        continue
                    if items is not None and each["index"] >= first + items:
                        raise AnotherWorker(job_id, "it streamed a result for an item that it does not have")
                    if each["index"] < given or each["index"] in early:
                        continue
                    news = True
                    if is_envelope(each):
                        early[each["index"]] = each
                    else:
                        yield each
                ready = []
                while given in early:
                    ready.append(early.pop(given))
                    given += 1
                async for envelope in self.fetched(ready, then):
                    yield envelope
                complete = bool(items) and given == first + (items or 0)
                if status in FINAL and (not ready or complete):
                    break
                if complete and deadline is None:
                    deadline = asyncio.get_running_loop().time() + SETTLED
                pause = 0.0 if news else min(2 * pause + 0.1, LONGEST_PAUSE)
                await asyncio.sleep(pause)
            if not complete or (status in FINAL and status != "COMPLETED"):
                rest = output(await self._ended(job_id), items, first)[given - first :]
                async for envelope in self.fetched(rest, then):
                    yield envelope
        except CallFailed as error:
            wait.blame(error)
            raise
        finally:
            if status not in FINAL and not complete:
                await self._give_up(job_id)

    async def _look(self, job_id: str, progress: Progress) -> None:
        while True:
            await asyncio.sleep(LOOKED)
            with suppress(CallFailed):
                match await self.status(job_id):
                    case {"status": "IN_PROGRESS", "output": {"progress": list(said)}}:
                        progress(said)

    async def _ended(self, job_id: str) -> dict[str, Any]:
        """Return the final state of a job whose stream has ended; ``/status`` may show it a moment later."""
        pause = 0.0
        while (state := await self.status(job_id))["status"] not in FINAL:
            pause = min(2 * pause + 0.1, LONGEST_PAUSE)
            await asyncio.sleep(pause)
        return state

    async def _ask(self, method: str, operation: str, job_id: str) -> dict[str, Any]:
        try:
            answer = await self._api.call(method, f"/{operation}/{quote(job_id, safe='')}")
        except CallFailed as error:
            if error.status != 404:
                raise
            raise JobFailed(job_id, "LOST", "the endpoint does not have it, or no longer") from None
        return checked({"id": job_id, **answer})

    async def fetched(self, envelopes: list[Envelope], then: Then | None = None) -> AsyncGenerator[Envelope, None]:
        """Yield ``envelopes``, each with its result fetched if that is in a bucket, and as ``then`` returned it."""

        async def receive(envelope: Envelope) -> Envelope:
            envelope = await self._fetch(envelope)
            return await then(envelope) if then else envelope

        for first in range(0, len(envelopes), FETCHES):
            for envelope in await asyncio.gather(*map(receive, envelopes[first : first + FETCHES])):
                yield envelope

    async def _fetch(self, envelope: Envelope) -> Envelope:
        if "result_url" not in envelope:
            return envelope
        try:
            result = await self._bucket.json("GET", envelope["result_url"])
        except CallFailed as error:
            message = f"The result is stored in a bucket and could not be fetched. {error}"
            return failure(envelope["index"], "ResultUnavailable", message)
        return {"index": envelope["index"], "success": True, "result": result}
