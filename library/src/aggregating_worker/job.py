"""One job: its input is checked, its items run, its outcomes counted in the log."""

import json
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from types import MappingProxyType, ModuleType
from typing import Any

from pydantic import ValidationError

from aggregating_worker import log
from aggregating_worker.calls.slots import Slots
from aggregating_worker.calls.stream import Stream
from aggregating_worker.calls.work import Options
from aggregating_worker.delivery.chunk import Chunk
from aggregating_worker.delivery.sender import Sender
from aggregating_worker.outcome.bucket import Access, Bucket
from aggregating_worker.outcome.overflow import Output
from aggregating_worker.process.function import TaskFunction
from aggregating_worker.process.process import Process
from aggregating_worker.refusal import Refused, faults
from aggregating_worker.request import Requests
from aggregating_worker.sentence import counted
from aggregating_worker.settings import Settings

CREDENTIALS = ("s3Config",)
"""Fields of a job that the task does not see."""
Yielded = Chunk | dict[str, Any] | list[dict[str, Any]]
"""A chunk for the worker's own sender or, for the SDK's, an envelope, or a list of them (``CHUNK_SIZE``)."""


class JobRunner:
    """Checks and follows jobs for ``task``, under ``settings``.

    The calls run in ``processes``. ``task`` must have ``load``, ``Input`` with a field ``items``, and exactly one of
    ``process`` and ``process_batch``; otherwise ``Refused`` is raised.
    """

    def __init__(self, task: ModuleType, settings: Settings, processes: Sequence[Process]) -> None:
        self._function = TaskFunction.of(task)
        if not callable(getattr(task, "load", None)):
            raise Refused("task.py must define load, a plain or an async function; it may do nothing.")
        self._requests = Requests(task, settings.max_items)
        self.settings = settings
        access = settings.access()
        self._own_bucket = Bucket(access) if access else None
        self.sender = Sender(settings.deliver_for)
        self.plain = True
        """Whether chunks are yielded as JSON values, for the SDK's sender; else as they are, for the worker's own."""
        self.ends = False
        """Whether the worker has to end, and has handed back its jobs."""
        self.on_start: Callable[[str], None] = lambda _: None
        """Called with the id of each job once it is checked: its items are about to start, or it is refused."""
        self.stream = Stream(self._function, processes, settings)

    @property
    def slots(self) -> Slots:
        """The slots, for all jobs."""
        return self.stream.slots

    @property
    def failed(self) -> bool:
        """Whether the process has to end with status 1: a final body was lost, or jobs were handed back."""
        return self.ends or self.sender.lost

    async def run(self, job: dict[str, Any]) -> AsyncGenerator[Yielded, None]:
        """Yield the job's chunks or, if it cannot start, ``{"error": sentence}``, with which the SDK fails it."""
        began = time.monotonic()
        limit = self.settings.output_limit(job["id"])
        try:
            request = self._requests.check(job.get("input"), job["id"])
            options = Options.of(request.options)
            items, first = request.items, request.first_index
            chunked = self.settings.chunk_size > 1 and not request.bare
            bucket = self._bucket(job)
            output = Output(
                job["id"],
                len(items),
                limit,
                first_index=first,
                chunked=chunked,
                bucket=bucket,
                inline_file_bytes=self.settings.inline_file_bytes,
                bare=request.bare,
            )
        except Refused as refusal:
            log.info(f"Refused: {refusal}", job["id"])
            self.on_start(job["id"])
            yield {"error": _cut(str(refusal), limit)}
            return
        if request.bare and self.plain:
            log.info("The answer is a list of one: the SDK sends it.", job["id"])
        streamed = failed = stored = 0
        self.on_start(job["id"])
        try:
            sent = MappingProxyType({name: value for name, value in job.items() if name not in CREDENTIALS})
            chunks = self.stream.run(items, options, job["id"], output, first_index=first, sent=sent)
            async with aclosing(chunks):
                async for chunk in chunks:
                    posted = Chunk(chunk, output, chunked)
                    yield posted.plain if self.plain else posted
                    streamed += len(chunk)
                    failed += sum(not outcome.success for outcome in chunk)
                    stored += sum(outcome.stored for outcome in chunk)
        finally:
            seconds = time.monotonic() - began
            done = counted(len(items), "item")
            if streamed < len(items):
                done = f"stopped after {streamed} of {done}"
            log.info(f"{done}, {failed} failed, {stored} stored, {seconds:.3f} s, {output.size} bytes", job["id"])

    def _bucket(self, job: dict[str, Any]) -> Bucket | None:
        """Return the job's own bucket, if that is allowed, or else the worker's."""
        if not (self.settings.allow_job_bucket and job.get("s3Config")):
            return self._own_bucket
        try:
            return Bucket(Access.model_validate(job["s3Config"]))
        except ValidationError as error:
            raise Refused(f"The job's s3Config cannot be used: {faults(error)}.") from None


def _cut(sentence: str, most: int) -> str:
    """Return as much of ``sentence`` as a body of ``most`` bytes can hold."""
    while len(json.dumps({"error": sentence})) > most:
        sentence = sentence[: len(sentence) // 2]
    return sentence
