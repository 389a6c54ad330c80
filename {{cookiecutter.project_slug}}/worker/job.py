"""One job: checked, streamed, accounted for."""

import inspect
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ValidationError

from worker import log
from worker.bucket import Access, Bucket
from worker.overflow import Output
from worker.refusal import Refused, faults
from worker.result import describe
from worker.settings import Settings
from worker.stream import Stream

Chunk = dict[str, Any] | list[dict[str, Any]]
"""What is yielded: an envelope, or with ``CHUNK_SIZE`` over 1 a list of them."""


class Worker:
    """The task under its settings.

    ``task`` must have ``load``, ``Input`` with a field ``items``, and exactly one of ``process`` and ``process_batch``;
    raises ``Refused`` if it has not.
    """

    def __init__(self, task: ModuleType, settings: Settings) -> None:
        functions = [name for name in ("process", "process_batch") if callable(getattr(task, name, None))]
        if len(functions) != 1:
            raise Refused("task.py must define exactly one of process and process_batch.")
        if not callable(getattr(task, "load", None)) or inspect.iscoroutinefunction(task.load):
            raise Refused("task.py must define load, a plain function; it may do nothing.")
        if not (isinstance(getattr(task, "Input", None), type) and issubclass(task.Input, BaseModel)):
            raise Refused("task.py must define Input, a subclass of pydantic.BaseModel.")
        if "items" not in task.Input.model_fields:
            raise Refused("task.Input must have a field items: list[…].")
        self._input: type[BaseModel] = task.Input
        self._load: Callable[[], None] = task.load
        self.settings = settings
        access = settings.access()
        self._own_bucket = Bucket(access) if access else None
        self._stream = Stream(getattr(task, functions[0]), settings, batched=functions[0] == "process_batch")

    def load(self) -> None:
        """Run the task's ``load``; raise ``Refused`` if it fails.

        In every mode outside the SDK's event loop, not as a fitness check: there ``asyncio.run`` would fail.
        """
        try:
            self._load()
        except BaseException as error:
            raised = describe(error)
            log.error("load() failed", raised)
            raise Refused(f"load() in task.py failed: {raised.kind}: {raised.message}") from None

    async def run(self, job: dict[str, Any]) -> AsyncGenerator[Chunk, None]:
        """Yield the job's chunks; a job that cannot start yields ``{"error": sentence}``, on which the SDK fails it."""
        began = time.monotonic()
        chunked = self.settings.chunk_size > 1
        try:
            checked = self._check(job)
            items: list[object] = checked.items  # type: ignore[attr-defined]  # a field of every task.Input
            limit = self.settings.max_output_bytes
            output = Output(job["id"], len(items), limit, chunked=chunked, bucket=self._bucket(job))
        except Refused as refusal:
            log.info(f"Refused: {refusal}", job["id"])
            yield {"error": str(refusal)}
            return
        sent = failed = stored = 0
        try:
            async with aclosing(self._stream.run(items, checked, job["id"], output)) as chunks:
                async for chunk in chunks:
                    yield [envelope.body for envelope in chunk] if chunked else chunk[0].body
                    sent += len(chunk)
                    failed += sum(not envelope.success for envelope in chunk)
                    stored += sum("result_url" in envelope.body for envelope in chunk)
        finally:
            seconds = time.monotonic() - began
            cut = "" if sent == len(items) else f" of {len(items)}, then stopped"
            counts = f"{sent} items{cut}, {failed} failed, {stored} stored"
            log.info(f"{counts}, {seconds:.3f} s, {output.size} bytes", job["id"])

    def _bucket(self, job: dict[str, Any]) -> Bucket | None:
        """Return the job's own bucket, where that is allowed, or the worker's."""
        if not (self.settings.allow_job_bucket and job.get("s3Config")):
            return self._own_bucket
        try:
            return Bucket(Access.model_validate(job["s3Config"]))
        except ValidationError as error:
            raise Refused(f"The job's s3Config cannot be used: {faults(error)}.") from None

    def _check(self, job: dict[str, Any]) -> BaseModel:
        given = job.get("input")
        if not isinstance(given, dict):
            raise Refused('The job\'s input must be an object: {"items": […]}.')
        items = given.get("items")
        if items is None or items == []:
            raise Refused("No items provided")
        if isinstance(items, list) and len(items) > self.settings.max_items:
            raise Refused(f"{len(items)} items are too many for one job: send at most {self.settings.max_items}.")
        try:
            checked = self._input.model_validate(given)
        except ValidationError as error:
            raise Refused(f"The job's input cannot be used: {faults(error)}.") from None
        except BaseException as error:  # a validator of the task's own; it must not end the worker
            log.error("task.Input could not check the job", describe(error), job["id"])
            raise Refused("The job's input cannot be used: task.Input failed on it.") from None
        if not isinstance(checked.items, list):  # type: ignore[attr-defined]
            raise Refused("task.Input.items must be a list.")
        return checked
