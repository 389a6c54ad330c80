"""The engine by itself: jobs of any function, on this process's own event loop and threads (``PROCESSES=0``)."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from itertools import count
from types import SimpleNamespace
from typing import Any

from pydantic import BaseModel, SecretStr

from aggregating_worker.calls.stream import Stream
from aggregating_worker.calls.work import Options
from aggregating_worker.context import in_call
from aggregating_worker.job import JobRunner
from aggregating_worker.outcome.overflow import Output
from aggregating_worker.outcome.result import Outcome, seal
from aggregating_worker.process.function import TaskFunction
from aggregating_worker.process.within import Within
from aggregating_worker.settings import Settings

_numbers = count()


def success(index: int, value: object) -> Outcome:
    """Return the outcome of an item whose result, without files in it, is ``value``."""
    made = seal(index, value)
    assert isinstance(made, Outcome)
    return made


def runner(task: Any, **values: Any) -> JobRunner:
    """Return what checks and runs jobs for ``task``."""
    return JobRunner(task, Settings(**values), [Within(task, TaskFunction.of(task))])


def make(function: Callable[..., Any], *, batched: bool = False, **values: Any) -> Stream:
    """Return the engine for ``function`` as the task's ``process`` or ``process_batch``."""
    name = "process_batch" if batched else "process"
    task: Any = SimpleNamespace(**{name: function}, load=lambda: None)
    described = TaskFunction.of(task)
    return Stream(described, [Within(task, described)], Settings(**values))


def stream_of(
    stream: Stream, items: Sequence[Any], request: object = None, job_id: str = "", output: Output | None = None
) -> AsyncGenerator[list[Outcome], None]:
    """Do a job, with an id of its own if it is given none; yield its chunks."""
    job_id = job_id or f"job-{next(_numbers)}"
    output = output or Output(job_id, len(items), 10_000_000, chunked=True)
    return stream.run(items, Options.of(request), job_id, output)


class Job(BaseModel):
    """A job's input, with options of any type."""

    items: list[Any]
    option: Any = None
    secret: SecretStr = SecretStr("")


async def run(stream: Stream, items: list[Any], job_id: str = "", **options: Any) -> list[dict[str, Any]]:
    """Do a job; return its envelopes."""
    job = Job(items=items, **options)
    return [outcome.body async for chunk in stream_of(stream, job.items, job, job_id) for outcome in chunk]


async def others_done(stream: Stream) -> None:
    """Wait until no call is under way, and no task but this one is left."""
    async with asyncio.timeout(10):
        while len(asyncio.all_tasks()) > 1 or stream.slots.under_way:
            await asyncio.sleep(0)


def given_up(stream: Stream) -> bool:
    """Whether nobody waits any more for the call that this is called in."""
    [process] = [seat.process for seat in stream.slots._seats]
    assert isinstance(process, Within)
    return process._runner._calls[in_call.get().call].given_up


class Gauge:
    """Counts how many are inside at once."""

    def __init__(self) -> None:
        self.inside = self.most = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.inside -= 1
