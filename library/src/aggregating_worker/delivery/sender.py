"""Posts chunks and final bodies to the platform, each again until it is taken.

The SDK (1.12.0, ``rp_http``) makes three attempts within two seconds after a 5xx, one after anything else, and then
writes a log line: a chunk is missing from the stream, or a job is never answered. ``Sender`` replaces the SDK's two
functions where ``rp_job`` calls them.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from aiohttp import ClientError
from runpod.serverless.modules import rp_http, rp_job
from yarl import URL

from aggregating_worker import log
from aggregating_worker.delivery.chunk import Chunk, final_body
from aggregating_worker.delivery.post import Answer, Poster
from aggregating_worker.outcome.overflow import Output

SEAMS = ("stream_result", "send_result")
ROUTES = ("JOB_STREAM_URL", "JOB_DONE_URL")
TRANSIENT = (408, 425, 429)
LARGE = 1_000_000
"""Bytes of a body from which a 400 means that the body is too large."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
"""Seconds between two attempts."""
ANSWER_WITHIN, BYTES_A_SECOND = 15, 200_000
"""How long to wait for an answer: so many seconds, plus what the body takes at this rate."""
HOPELESS_WITHIN = 1
"""The seconds of the single attempts after ``DELIVER_FOR``."""
FORGOTTEN_AFTER = 1.0
"""Seconds between two answers 404 after which the platform does not know a job any more."""
PROGRESS_WITHIN = 5.0
"""How long the only attempt to send a progress may take."""
SHRINK_BY = 32
"""A final body that is too large is made smaller by this part of it for the next attempt."""
FORGOTTEN = "The platform answers 404 for this job: it is over there, or its time is. What is left of it is dropped."
HEADERS = {"charset": "utf-8", "Content-Type": "application/x-www-form-urlencoded"}


class TooLarge(Exception):
    """The platform does not take a body of this size."""


class RefusedForGood(Exception):
    """The platform will never take this body; the text says what it answered."""


class GivenUp(Exception):
    """The platform has not taken a body within ``DELIVER_FOR``."""


@dataclass(eq=False)
class Sender:
    """Posts chunks, parts and final bodies; what the platform does not take, again for ``deliver_for`` seconds."""

    deliver_for: float
    lost: bool = False
    """Whether a job was given up without a final body."""
    taken: int = 0
    """How many POSTs the platform has taken."""
    on_forgotten: Callable[[str], None] = field(default=lambda job_id: log.error(FORGOTTEN, job_id))
    """Called with the id of a job that the platform does not know any more: nobody waits for it."""
    on_refusal: Callable[[str], None] = field(default=lambda _: None)
    """Called with the reason once the platform refuses whatever it is sent."""
    session: Any = None
    """The SDK's session, as soon as it is known: its headers go with parts of items, too."""
    poster: Poster = field(default_factory=Poster)

    def install(self) -> bool:
        """Replace the SDK's sender; False, and a line in the log, if this SDK does not call it in the known way."""
        names = rp_job.handle_job.__code__.co_names
        missing = [name for name in SEAMS if name not in names]
        missing += [name for name in ROUTES if not hasattr(rp_http, name)]
        if missing:
            log.warning(f"Results are sent by the SDK, which gives up early: it has no {', '.join(missing)} any more.")
            return False
        rp_job.stream_result, rp_job.send_result = self.send_chunk, self.send_result
        return True

    async def send_chunk(self, session: Any, output: dict[str, Any], job: dict[str, Any]) -> None:
        """Post a chunk, in halves if it is too large; an envelope that is too large alone is in the aggregate only."""
        chunk: Chunk = output["output"]
        if not (body := chunk.body()):
            return
        job_id = job["id"]
        try:
            await self._stream(session, chunk.output, job_id, body)
        except TooLarge:
            half = len(chunk.outcomes) // 2
            if not half:
                log.error(
                    f"A chunk of {_size(body)} bytes is too large for the stream; its result is in the output.", job_id
                )
                return
            for outcomes in (chunk.outcomes[:half], chunk.outcomes[half:]):
                await self.send_chunk(session, {"output": Chunk(outcomes, chunk.output, chunk.listed)}, job)

    async def send_parts(self, output: Output, job_id: str, index: int, parts: Sequence[bytes]) -> None:
        """Post parts of the item at ``index``: together or, where the job has no envelopes, each by itself."""
        together = b'{"index": %d, "parts": [%b]}' % (index, b", ".join(parts))
        output.in_parts = True
        for each in parts if output.bare else [together]:
            body = [b'{"output": ', each, b"}"]
            try:
                await self._stream(self.session, output, job_id, body)
            except TooLarge:
                log.error(
                    f"{_size(body)} bytes of parts are too large for the stream; the item's result has them.", job_id
                )

    async def _stream(self, session: Any, output: Output, job_id: str, body: Sequence[bytes]) -> None:
        """Post to a job's stream. After ``DELIVER_FOR``, try each further body once, until one succeeds.

        Raises ``TooLarge``.
        """
        since = output.failing_since or time.monotonic()
        try:
            with suppress(RefusedForGood):
                await self._post(session, f"{rp_http.JOB_STREAM_URL}&isStream=false", body, job_id, since)
            output.failing_since = None
        except GivenUp:
            output.failing_since = since

    async def send_result(self, session: Any, result: dict[str, Any], job: dict[str, Any], *, is_stream: bool) -> None:
        """Post a job's final body; if it is too large, again with its largest results stored or failed.

        If it is refused for good, the job fails, so that its caller need not wait until its time is over.
        """
        job_id = job["id"]
        template = f"{rp_http.JOB_DONE_URL}&isStream={str(is_stream).lower()}"
        chunks: list[Chunk] = result.get("output") or []
        rest = {name: value for name, value in result.items() if name != "output"}
        if any(chunk.output.refresh_worker for chunk in chunks):
            rest["stopPod"] = True
        why = ""
        while not why:
            body = final_body(chunks, rest)
            size = _size(body)
            try:
                return await self._post(session, template, body, job_id, time.monotonic())
            except GivenUp:
                self.lost = True
                return None
            except RefusedForGood as refusal:
                why = str(refusal)
            except TooLarge:
                log.warning(
                    f"A final body of {size} bytes is too large for the platform: trying a smaller one.", job_id
                )
                smaller = await asyncio.to_thread(_shrink, chunks, size // SHRINK_BY)
                why = "" if smaller else "it is too large, and cannot be made smaller"
                chunks = smaller or []
        taken, sentence = self.taken, f"The platform does not take the job's result of {size:,} bytes: {why}."
        try:
            await self._post(session, template, final_body([], {**rest, "error": sentence}), job_id, time.monotonic())
        except (RefusedForGood, TooLarge):
            self.lost = True
            if self.taken == taken:
                self.on_refusal("the platform takes neither the result of a job nor its failure")
        except GivenUp:
            self.lost = True

    async def _post(self, session: Any, template: str, body: Sequence[bytes], job_id: str, since: float) -> None:
        """Post ``body`` until it is taken. If the platform has forgotten the job, say so, and return.

        Raises ``RefusedForGood``, ``TooLarge``, and ``GivenUp`` once ``deliver_for`` seconds have passed since
        ``since``. A body whose answer is lost arrives twice.
        """
        server, path, headers = _request(session, template, job_id)
        hopeless = time.monotonic() > since + max(self.deliver_for, ANSWER_WITHIN)
        size = _size(body)
        seconds = (HOPELESS_WITHIN if hopeless else ANSWER_WITHIN) + size // BYTES_A_SECOND
        pause, unknown = FIRST_PAUSE, False
        due = time.monotonic()
        while True:
            asked = 0.0
            try:
                answer = await self.poster.post(server, path, headers, body, seconds)
                if 300 <= answer.status < 400:  # the SDK's client follows redirects
                    url = server.join(URL(path, encoded=True))
                    joined = b"".join(body)
                    async with asyncio.timeout(seconds), session.post(url, data=joined, headers=headers) as other:
                        if other.method == "POST":  # else it was a GET, whose 200 is some page
                            answer = Answer(other.status, other.headers.get("Retry-After", ""))
                if answer.status < 300:
                    self.taken += 1
                    return
                if answer.status == 404:
                    if unknown:
                        self.on_forgotten(job_id)
                        await asyncio.sleep(0)  # which ends this asyncio task, if it is the job's
                        return
                    unknown = True
                    await asyncio.sleep(FORGOTTEN_AFTER)
                    continue
                why = f"answered {answer.status}"
                if answer.status == 413 or (answer.status == 400 and size > LARGE):
                    raise TooLarge
                if 400 <= answer.status < 500 and answer.status not in TRANSIENT:
                    log.error(f"{size} bytes are refused for good: the platform {why}.", job_id)
                    raise RefusedForGood(f"it {why}")
                asked = _retry_after(answer.retry_after)
            except (ClientError, OSError) as error:
                why = f"could not be reached ({type(error).__name__})"
            since += max(0.0, time.monotonic() - due - 3 * seconds)  # no time passes while the worker is frozen
            left = since + self.deliver_for - time.monotonic()
            if left <= 0:
                log.error(f"{size} bytes are given up after DELIVER_FOR: the platform {why}.", job_id)
                raise GivenUp
            if pause == FIRST_PAUSE:
                log.warning(f"{size} bytes are sent again for up to {left:.0f} s: the platform {why}.", job_id)
            wait = pause * random.uniform(0.5, 1.0)  # noqa: S311  # workers must not all try again at once
            wait = min(max(wait, asked), left)
            due = time.monotonic() + wait
            await asyncio.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def send_progress(self, job_id: str, entries: bytes) -> bool:
        """Post how far a job's items are, once, as the SDK does (``rp_progress``); return whether that is taken."""
        server, path, headers = _request(self.session, f"{rp_http.JOB_DONE_URL}&isStream=false", job_id)
        body = [b'{"status": "IN_PROGRESS", "output": {"progress": ', entries, b"}}"]
        with suppress(OSError):
            async with asyncio.timeout(PROGRESS_WITHIN):
                return (await self.poster.post(server, path, headers, body, PROGRESS_WITHIN)).status < 300
        return False


def _request(session: Any, template: str, job_id: str) -> tuple[URL, str, dict[str, str]]:
    """Return the server, the path and the headers of a POST for a job."""
    quoted = quote(job_id)
    server, path = _parsed(template)
    return server, path.replace("$ID", quoted), {**session.headers, **HEADERS, "X-Request-ID": quoted}


@lru_cache(maxsize=8)
def _parsed(template: str) -> tuple[URL, str]:
    url = URL(template)
    return url.origin(), url.raw_path_qs


def _size(body: Sequence[bytes]) -> int:
    return sum(map(len, body))


def _shrink(chunks: list[Chunk], spare: int) -> list[Chunk] | None:
    """Return ``chunks`` made smaller by ``Output.shrink``; None if it cannot be done. Blocks."""
    outcomes = [outcome for chunk in chunks for outcome in chunk.outcomes]
    smaller = chunks[0].output.shrink(outcomes, spare) if chunks else None
    if not smaller:
        return None
    left = iter(smaller)
    return [Chunk([next(left) for _ in chunk.outcomes], chunk.output, chunk.listed) for chunk in chunks]


def _retry_after(text: str) -> float:
    """Return the seconds that a ``Retry-After`` asks for: a number, or the time until a date (RFC 9110, 10.2.3)."""
    with suppress(ValueError):
        return min(float(text), 3_600.0)
    with suppress(ValueError, OverflowError):
        return parsedate_to_datetime(text).timestamp() - time.time()
    return 0.0
