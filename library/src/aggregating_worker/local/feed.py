"""What is sent to an open page: the latest jobs and results, as many as a person can look at, as fast as it reads."""

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from aggregating_worker.client.envelopes import is_parts
from aggregating_worker.client.files import files_of, name_of
from aggregating_worker.local.job import Job
from aggregating_worker.local.queue import Queue

JOBS = 50
"""Jobs shown: those that changed last."""
RESULTS = 100
"""Results shown of a job: the latest."""
PREVIEW = 2_000
"""Characters shown of a result: its beginning, or its end while it is still growing."""
FILES = 40_000_000
"""Characters of files, in base64, that a page is sent at once for a job; the latest results come first."""
PAUSE = 0.2
"""Seconds between two updates."""
PATIENCE = 10.0
"""Seconds after which a page that does not read is dropped; it connects again when it wakes up."""
TOO_DEEP = "nested too deeply to be shown"

_encoder = json.JSONEncoder(ensure_ascii=False)


class Card:
    """A job as one page knows it, and the results that are still to be sent to the page."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.count = 0
        self.failed = 0
        self.results: deque[tuple[int, float | None, Any]] = deque(maxlen=RESULTS)
        self.growing: dict[int, str] = {}
        self.fresh = True
        self.told = False
        self.add(so_far(job))

    def add(self, results: Iterable[Any], after: float | None = None) -> None:
        """Note ``results``, which arrived ``after`` this many seconds of work; None if unknown."""
        for result in results:
            if is_parts(result):
                self._grow(result["index"], result["parts"])
                continue
            index = result["index"] if is_envelope(result) else self.count
            self.growing.pop(index, None)
            self.results.append((index, after, result))
            self.count += 1
            self.failed += is_envelope(result) and not result["success"]

    def _grow(self, index: int, parts: list[Any]) -> None:
        shown = (part if isinstance(part, str) else f"{preview(without_data(part))}\n" for part in parts)
        self.growing[index] = "".join([self.growing.pop(index, ""), *shown])[-PREVIEW:]
        if len(self.growing) > RESULTS:
            del self.growing[next(iter(self.growing))]

    def news(self) -> dict[str, Any]:
        """Return what to show, with the results since the last call; ``age`` and other times are milliseconds."""
        job, result = self.job, read(b"{" + self.job.outcome + b"}")
        results = [line(*each) for each in self.results]
        room = FILES
        for file in (file for told in reversed(results) for file in told["files"]):
            room -= len(file.get("data", ""))
            if room < 0:
                file.pop("data", None)
        news = job.facts() | {
            "final": job.final,
            "age": round((time.monotonic() - job.queued) * 1000),
            "items": job.items,
            "count": self.count,
            "failed": self.failed,
            "error": preview(result["error"]) if "error" in result else None,
            "progress": preview(result["output"]) if "output" in result and not job.final else None,
            "fresh": self.fresh,
            "results": results,
            "growing": [*self.growing.items()],
        }
        self.results.clear()
        self.growing.clear()
        self.fresh, self.told = False, True
        return news


class Feed:
    """The updates for one open page: what ``counts()`` returns, and each job that changed, until ``ending()`` is true.

    It only watches ``queue``, so that a caller's ``/stream`` still gets every chunk.
    """

    def __init__(self, queue: Queue, counts: Callable[[], dict[str, Any]], ending: Callable[[], bool]) -> None:
        self._queue = queue
        self._counts = counts
        self._ending = ending
        self._cards: dict[str, Card] = {}
        self._read = time.monotonic()
        self._lost = False

    async def lines(self) -> AsyncIterator[str]:
        """Yield the updates as lines of JSON: the counts, which have no ``id``, then the jobs."""
        for job in [*self._queue.jobs.values()][-JOBS:]:
            self._see(job)
        self._queue.watchers.append(self._see)
        try:
            while not (self._lost or self._ending()):
                yield encoded({**self._counts(), "shown": {"jobs": JOBS, "results": RESULTS, "preview": PREVIEW}})
                for card in [card for card in self._cards.values() if not card.told]:
                    yield encoded(card.news())
                    self._read = time.monotonic()
                await asyncio.sleep(PAUSE)
                self._read = time.monotonic()
        finally:
            self._queue.watchers.remove(self._see)

    def _see(self, job: Job, *chunk: bytes) -> None:
        if time.monotonic() - self._read > PATIENCE:
            self._lost = True
            self._cards.clear()
        if self._lost:
            return
        card = self._cards.pop(job.id, None)
        if card is None or job.status == "IN_QUEUE" or (job.final and card.count < len(results_of(so_far(job)))):
            # New to this page, started again, or with results that were too large for the stream or fetched before.
            card = Card(job)
        else:
            card.add(results_in(map(output_of, chunk)), time.monotonic() - (job.taken or job.queued))
        card.told = False
        self._cards[job.id] = card
        if len(self._cards) > JOBS:
            del self._cards[next(iter(self._cards))]  # the one that has not changed for longest


def so_far(job: Job) -> list[Any]:
    """Return the results of ``job`` that are here: all in its output once it has ended, else those not fetched yet."""
    if job.final and "output" in (result := read(b"{" + job.outcome + b"}")):
        output = result["output"]
        return results_in(output if isinstance(output, list) else [output])
    return results_in(map(output_of, job.chunks))


def read(text: bytes) -> dict[str, Any]:
    """Return what a worker sent, with its ``output`` or its ``error``."""
    try:
        content: dict[str, Any] = json.loads(text)
    except RecursionError:
        return {"output": TOO_DEEP}
    return content


def output_of(chunk: bytes) -> Any:
    """Return what a worker yielded."""
    return read(chunk)["output"]


def results_in(chunks: Iterable[Any]) -> list[Any]:
    """Return the results in ``chunks``: a chunk is one, or a list of envelopes (``CHUNK_SIZE``)."""
    results: list[Any] = []
    for chunk in chunks:
        results += chunk if isinstance(chunk, list) and chunk and all(map(is_envelope, chunk)) else [chunk]
    return results


def results_of(results: Iterable[Any]) -> list[Any]:
    """Return ``results`` without the parts of items."""
    return [result for result in results if not is_parts(result)]


def is_envelope(result: Any) -> bool:
    """Tell whether ``result`` is an envelope, as the README describes it."""
    match result:
        case {"index": int(index), "success": bool()}:
            return 0 <= index < 1e9
    return False


def line(index: int, after: float | None, result: Any) -> dict[str, Any]:
    """Return what to show of a result and its files; ``success`` is None if the worker does not say."""
    success = result["success"] if is_envelope(result) else None
    match result:
        case {"result": content} if success:
            result = content
        case {"failure": {"type": kind, "message": message}} if success is False:
            result = f"{kind}: {message}"
    files = [
        {**file, "name": name_of(index, number, file["content_type"])} for number, file in enumerate(files_of(result))
    ]
    return {"index": index, "after": after, "success": success, "text": preview(without_data(result)), "files": files}


def without_data(content: Any) -> Any:
    """Return ``content`` without the data of its files; their types and sizes stay."""
    for file in files_of(content):
        file.pop("data", None)
    return content


def preview(content: Any) -> str:
    """Return the beginning of a text, or of anything else as JSON, of which the rest is not encoded."""
    text = ""
    try:
        for part in [content] if isinstance(content, str) else _encoder.iterencode(content):
            text += part[: PREVIEW + 1]
            if len(text) > PREVIEW:
                break
    except RecursionError:
        return TOO_DEEP
    return text if len(text) <= PREVIEW else f"{text[:PREVIEW]} … (the first {PREVIEW:,} characters)"


def encoded(news: dict[str, Any]) -> str:
    """Return ``news`` as a line of ASCII, which any text survives."""
    return json.dumps(news) + "\n"
