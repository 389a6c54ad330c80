"""The worker as ``handler.py`` sees it: what stands around ``runpod.serverless.start``.

It imports neither the SDK nor the task before it has to: the commands of the other side need neither.
"""

import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import count
from types import ModuleType
from typing import TYPE_CHECKING, Any

from aggregating_worker import before_sdk, start_folder
from aggregating_worker.sentence import counted, printable, reason

if TYPE_CHECKING:
    from aggregating_worker.intake.mode import Mode
    from aggregating_worker.job import JobRunner
    from aggregating_worker.process.processes import Processes
    from aggregating_worker.settings import Settings

SHOWN = 500
"""Characters of a text that a local test prints."""
EVERY = 5.0
"""Seconds after which a local test says that it goes on: an item may never return."""


class Worker:
    """The worker of the task in the module ``task``, which is imported and loaded when it is first needed."""

    def __init__(self, task: str = "task") -> None:
        self._task = task
        self._mode: Mode | None = None
        self._failure = ""
        """What went wrong in a local test, in a sentence."""

    @property
    def streams(self) -> bool:
        """Whether the SDK iterates over a generator that it is given; where it does not, it calls a handler once."""
        return self._mode is None or self._mode.iterates

    def job_concurrency(self, current: int) -> int:
        """Return how many jobs the SDK's own loop may have in hand, where that is not replaced."""
        del current
        return self._jobs.settings.job_concurrency or 1

    def run(self, job: dict[str, Any]) -> AsyncGenerator[Any, None]:
        """Return what yields the chunks of ``job`` as they are ready, or ``{"error": sentence}`` if it cannot start."""
        return self._jobs.run({"id": "local_test", **job})  # as the SDK calls a job without an id

    async def collect(self, results: AsyncIterator[Any]) -> Any:
        """Return ``results`` as what production would answer: a list, or of a job that fails an ``{"error": …}``."""
        import asyncio  # here, so that Ctrl-C is a sentence as early as can be

        from aggregating_worker.delivery.chunk import Chunk
        from aggregating_worker.intake.mode import Mode
        from aggregating_worker.outcome.overflow import Output

        local_test = self._mode is Mode.LOCAL_TEST
        if local_test:
            before_sdk.end_on_interrupt()  # again: ``start`` has the SDK end with status 0
        telling = [asyncio.create_task(_tell())] if local_test else []
        chunks = [result async for result in results]
        for task in telling:
            task.cancel()
        answer: Any = [chunk.plain if isinstance(chunk, Chunk) else chunk for chunk in chunks]
        match answer, chunks:
            case [{"error": str(why)}], _:
                return {"error": printable(why)}
            case [bare], [Chunk(output=Output(bare=True))]:
                answer = bare
            case _:
                self._failure = _failed(answer)
        return _shown(answer) if local_test else answer

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Make ready for ``runpod.serverless.start``, which is called within; end with the right status after it.

        What cannot be used (a setting, an argument, the task) is a sentence and status 1. In production, such a worker
        ends by way of a fitness check, which tells the platform why, instead of taking jobs to fail.
        """
        before_sdk.end_on_interrupt()
        before_sdk.prepare()
        before_sdk.check_environment()
        with start_folder.writable(), self._processes:
            from aggregating_worker.refusal import Refused

            try:
                try:
                    _ = self._started
                finally:
                    from aggregating_worker.intake.mode import Mode, find_mode  # the SDK, while the task loads

                    self._mode = find_mode()
                jobs = self._jobs
                jobs.plain = self._mode.iterates  # else ``collect`` gets the chunks
            except Refused as refusal:
                print(refusal, file=sys.stderr)
                if self._mode is Mode.PRODUCTION:
                    self._die(refusal)
                sys.exit(1)
            if self._mode is Mode.PRODUCTION:
                from aggregating_worker.intake import loop

                loop.install(jobs)
            if self._mode is Mode.API:
                from aggregating_worker.intake import api  # and FastAPI with it, which no other mode needs

                api.install()
            try:
                yield
            except SystemExit as end:
                # The SDK's local test ends with status 0 however its items fared (1.12.0, ``rp_local``).
                if self._mode is Mode.LOCAL_TEST and not end.code and self._failure:
                    sys.exit(printable(self._failure))
                raise
        if jobs.failed:
            sys.exit(1)

    @cached_property
    def _started(self) -> "tuple[ModuleType, Settings]":
        """The task, which its processes load, and its settings. Raises ``Refused`` if it cannot be used."""
        from importlib import import_module

        from aggregating_worker import log
        from aggregating_worker.outcome.result import describe
        from aggregating_worker.process.devices import uses_gpu
        from aggregating_worker.process.log import TaskLog
        from aggregating_worker.refusal import Refused
        from aggregating_worker.settings import read_settings

        TaskLog(lambda where, level, message: log.line(level, message, where.job_id)).install()
        try:
            task = import_module(self._task)
        except BaseException as error:  # sys.exit() among them
            raised = describe(error)
            log.keep_writing()
            log.error(f"{self._task}.py cannot be imported", trace=raised.trace)
            raise Refused(f"{self._task}.py cannot be imported: {reason(raised.kind, raised.message)}") from None
        if uses_gpu():
            raise Refused(f"{self._task}.py uses the GPU when it is imported: do that in load().")
        settings = read_settings(task)
        self._processes.start(task, settings.processes)
        return task, settings

    @cached_property
    def _jobs(self) -> "JobRunner":
        """What runs jobs: the task, loaded, under its settings. Raises ``Refused`` if it cannot be used."""
        task, settings = self._started
        from aggregating_worker import log
        from aggregating_worker.job import JobRunner

        log.keep_writing()
        jobs = JobRunner(task, settings, self._processes.all)
        self._processes.load()
        return jobs

    @cached_property
    def _processes(self) -> "Processes":
        from aggregating_worker.process.processes import Processes

        return Processes(self._task)

    def _die(self, refusal: Exception) -> None:
        import runpod

        def ready() -> None:
            raise refusal

        runpod.serverless.register_fitness_check(ready)
        runpod.serverless.start({"handler": self.run})


class _Long(str):
    """A text that is printed by its beginning and its length, since the SDK prints all that a local test returns."""

    def __repr__(self) -> str:
        return repr(f"{self[: SHOWN // 10]}… ({len(self):,} characters)")


def _shown(value: Any) -> Any:
    """Return ``value`` with every long text in it, such as a picture in base64, printed shortly."""
    match value:
        case str() if len(value) > SHOWN:
            return _Long(value)
        case dict():
            return {name: _shown(inner) for name, inner in value.items()}
        case list():
            return [*map(_shown, value)]
    return value


async def _tell() -> None:
    import asyncio

    from aggregating_worker import log

    for seconds in count(EVERY, EVERY):
        await asyncio.sleep(EVERY)
        log.info(f"Not done after {seconds:g} s (ITEM_TIMEOUT bounds an item).")


def _failed(chunks: list[Any]) -> str:
    """Say how many items failed, and why the first; an empty text if none did."""
    envelopes = [one for chunk in chunks for one in (chunk if isinstance(chunk, list) else [chunk])]
    failed = [envelope for envelope in envelopes if isinstance(envelope, dict) and not envelope["success"]]
    if not failed:
        return ""
    index, why = failed[0]["index"], reason(failed[0]["failure"]["type"], failed[0]["failure"]["message"])
    return f"{len(failed)} of {counted(len(envelopes), 'item')} failed. Item {index}: {why}"
