"""One job: its input is checked, its items run, its outcomes counted in the log."""

import json
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from types import MappingProxyType, ModuleType
from typing import Any

from pydantic import BaseModel, FailFast, ValidationError
from pydantic_core import ErrorDetails

from aggregating_worker import log
from aggregating_worker.calls.slots import Slots
from aggregating_worker.calls.stream import Stream
from aggregating_worker.calls.work import Options
from aggregating_worker.delivery.chunk import Chunk
from aggregating_worker.delivery.sender import Sender
from aggregating_worker.outcome.bucket import Access, Bucket
from aggregating_worker.outcome.overflow import Output
from aggregating_worker.outcome.result import describe
from aggregating_worker.process.function import TaskFunction
from aggregating_worker.process.process import Process
from aggregating_worker.refusal import Refused, faults
from aggregating_worker.sentence import counted
from aggregating_worker.settings import Settings

MAX_INDEX = 10**12
NO_ITEMS = "No items provided"
CREDENTIALS = ("s3Config",)
"""Fields of a job that the task does not see."""
Yielded = Chunk | dict[str, Any] | list[dict[str, Any]]
"""A chunk for the worker's own sender or, for the SDK's, an envelope, or a list of them (``CHUNK_SIZE``)."""


class Unreadable(str):
    """In place of a job's ``input`` that cannot be read: why, in a sentence for its caller."""


class JobRunner:
    """Checks and follows jobs for ``task``, under ``settings``.

    The calls run in ``processes``. ``task`` must have ``load``, ``Input`` with a field ``items``, and exactly one of
    ``process`` and ``process_batch``; otherwise ``Refused`` is raised.
    """

    def __init__(self, task: ModuleType, settings: Settings, processes: Sequence[Process]) -> None:
        self._function = TaskFunction.of(task)
        if not callable(getattr(task, "load", None)):
            raise Refused("task.py must define load, a plain or an async function; it may do nothing.")
        if not (isinstance(getattr(task, "Input", None), type) and issubclass(task.Input, BaseModel)):
            raise Refused("task.py must define Input, a subclass of pydantic.BaseModel.")
        if "items" not in task.Input.model_fields:
            raise Refused("task.Input must have a field items: list[…].")
        self._input: type[BaseModel] = task.Input
        _fail_fast(self._input)
        self.settings = settings
        access = settings.access()
        self._own_bucket = Bucket(access) if access else None
        self.sender = Sender(settings.deliver_for)
        self.sends = False
        """Whether chunks go to the worker's own sender."""
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
        chunked = self.settings.chunk_size > 1
        try:
            request, first = self._check(job)
            options = Options.of(request)
            items = tuple(request.items)  # type: ignore[attr-defined]  # a copy: the task may change its list
            limit, bucket = self.settings.max_output_bytes, self._bucket(job)
            output = Output(
                job["id"],
                len(items),
                limit,
                first_index=first,
                chunked=chunked,
                bucket=bucket,
                inline_file_bytes=self.settings.inline_file_bytes,
            )
        except Refused as refusal:
            log.info(f"Refused: {refusal}", job["id"])
            self.on_start(job["id"])
            yield {"error": _cut(str(refusal), self.settings.max_output_bytes)}
            return
        streamed = failed = stored = 0
        self.on_start(job["id"])
        try:
            sent = MappingProxyType({name: value for name, value in job.items() if name not in CREDENTIALS})
            chunks = self.stream.run(items, options, job["id"], output, first_index=first, sent=sent)
            async with aclosing(chunks):
                async for chunk in chunks:
                    posted = Chunk(chunk, output, chunked)
                    yield posted if self.sends else posted.plain
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

    def _check(self, job: dict[str, Any]) -> tuple[BaseModel, int]:
        """Return the job's checked input and the index of its first item; raise ``Refused`` if it cannot be used.

        Every job may have a field ``first_index``, which numbers a slice of a longer list; ``task.Input`` need not have
        it.
        """
        given = job.get("input")
        if isinstance(given, Unreadable):
            raise Refused(given)
        if not isinstance(given, dict):
            raise Refused('The job\'s input must be an object: {"items": […]}.')
        first = given.get("first_index", 0)
        if type(first) is not int or not 0 <= first <= MAX_INDEX:
            raise Refused(f"The job's first_index must be a whole number from 0 to {MAX_INDEX}.")
        if "first_index" not in self._input.model_fields:
            given = {name: value for name, value in given.items() if name != "first_index"}
        self._check_count(given.get("items"))  # before each item is checked, which takes time
        try:
            request = self._input.model_validate(given)
        except ValidationError as error:
            if any(self._is_without_items(fault) for fault in error.errors()):
                raise Refused(NO_ITEMS) from None
            raise Refused(f"The job's input cannot be used: {faults(error)}.") from None
        except BaseException as error:  # a validator is the task's code; it must not end the worker
            log.error("task.Input failed on a job", job["id"], describe(error).trace)
            raise Refused("The job's input cannot be used: task.Input failed on it.") from None
        items = request.items  # type: ignore[attr-defined]
        if not isinstance(items, list):
            raise Refused("task.Input.items must be a list.")
        if not items:
            raise Refused(NO_ITEMS)
        self._check_count(items)
        return request, first

    def _check_count(self, items: object) -> None:
        if isinstance(items, list) and len(items) > self.settings.max_items:
            raise Refused(f"{len(items)} items are too many for one job: send at most {self.settings.max_items}.")

    def _is_without_items(self, fault: ErrorDetails) -> bool:
        """Whether ``fault`` says that the items are missing, under the name that ``task.Input`` has for them."""
        field = self._input.model_fields["items"]
        ours = fault["loc"][:1] in (("items",), (field.alias,), (field.validation_alias,))
        return ours and (fault["type"] == "missing" or (len(fault["loc"]) == 1 and fault["input"] is None))


def _fail_fast(model: type[BaseModel]) -> None:
    """Have ``model`` stop at the first item that it does not accept: each fault of each item would take memory."""
    field = model.model_fields["items"]
    if any(isinstance(each, FailFast) for each in field.metadata):
        return
    field.metadata.append(FailFast())
    try:
        model.model_rebuild(force=True)
    except Exception:  # the items are no list, tuple or set
        field.metadata.pop()
        model.model_rebuild(force=True)


def _cut(sentence: str, most: int) -> str:
    """Return as much of ``sentence`` as a body of ``most`` bytes can hold."""
    while len(json.dumps({"error": sentence})) > most:
        sentence = sentence[: len(sentence) // 2]
    return sentence
