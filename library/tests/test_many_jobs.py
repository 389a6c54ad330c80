"""Many jobs at once, of any items, options, cancels and time-outs: all of them end, though nothing else comes."""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from tests.conftest import Caller, Serve
from tests.engine import make, others_done, stream_of

RIGHT = {"good": "good", "raises": "ValueError", "exits": "SystemExit", "hangs": "TimeoutError", "object": "TypeError"}
"""What items do, and their result or the type of their failure."""


_numbers = count()
"""Of failures: many that are alike would mean that the process is broken."""


class Job(BaseModel):
    items: list[Any]
    option: int


@dataclass
class Plan:
    """A job: after how many turns of the event loop it comes and, if it is cancelled, after how many more."""

    items: list[str]
    option: int
    comes: int
    cancelled: int | None


plans = st.builds(
    Plan,
    items=st.lists(st.sampled_from(["good", "good", "good", *RIGHT]), min_size=1, max_size=12),
    option=st.integers(0, 2),
    comes=st.integers(0, 60),
    cancelled=st.none() | st.none() | st.integers(0, 60),
)


async def process(item: str, job: Job) -> Any:
    await asyncio.sleep(0)
    match item:
        case "raises":
            raise ValueError(next(_numbers))
        case "exits":
            raise SystemExit(next(_numbers))
        case "hangs":
            await asyncio.Event().wait()
        case "object":
            return object()
    return item


async def process_batch(items: list[str], job: Job) -> list[Any]:
    return [await process(item, job) for item in items]


@settings(deadline=None, max_examples=80)
@given(
    jobs=st.lists(plans, min_size=1, max_size=8),
    batched=st.booleans(),
    concurrency=st.integers(1, 3),
    lookahead=st.integers(1, 8),
    batch_size=st.integers(1, 6),
    batch_wait=st.sampled_from([0, 0, 0.01]),
    undelivered=st.sampled_from([1, 300, 10**6]),
)
def test_every_job_ends_with_the_right_outcomes(
    jobs: list[Plan], batched: bool, undelivered: int, **values: Any
) -> None:
    stream = make(
        process_batch if batched else process,
        batched=batched,
        item_concurrency=values["concurrency"],
        lookahead=values["lookahead"],
        batch_size=values["batch_size"],
        batch_wait=values["batch_wait"],
        undelivered_bytes=undelivered,
        item_timeout=0.1,
    )

    async def run(number: int, plan: Plan) -> list[Any]:
        for _ in range(plan.comes):
            await asyncio.sleep(0)
        made: list[Any] = []
        request = Job(items=plan.items, option=plan.option)
        async for chunk in stream_of(stream, plan.items, request, str(number)):
            made += [outcome.body for outcome in chunk]
        return [each["result"] if each["success"] else each["failure"]["type"] for each in made]

    async def scenario() -> None:
        running = [asyncio.create_task(run(number, plan)) for number, plan in enumerate(jobs)]

        async def cancel(task: "asyncio.Task[list[Any]]", turns: int) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()

        cancelling = [
            asyncio.create_task(cancel(task, plan.comes + plan.cancelled))
            for task, plan in zip(running, jobs, strict=True)
            if plan.cancelled is not None
        ]
        async with asyncio.timeout(20):
            for task, plan in zip(running, jobs, strict=True):
                with suppress(asyncio.CancelledError):
                    assert await task == [RIGHT[item] for item in plan.items]
            await asyncio.gather(*cancelling)
            await others_done(stream)
        assert len(stream.slots.room) == stream.slots.turns.waiting == 0

    asyncio.run(scenario())


@pytest.fixture(scope="module")
def caller(serve: Serve) -> Caller:
    return serve("deadly_batch", PROCESSES="2", ITEM_CONCURRENCY="2", BATCH_SIZE="4", ITEM_TIMEOUT="0.1")


DEADLY = {"segfault": "ProcessDied", "exit": "ProcessDied", "rest": "TimeoutError", "match": "TimeoutError"}


@settings(deadline=None, max_examples=10)
@given(
    jobs=st.lists(
        st.tuples(st.lists(st.integers(0, 9) | st.sampled_from([*DEADLY]), min_size=1, max_size=5), st.integers(0, 1)),
        min_size=1,
        max_size=4,
    )
)
def test_every_job_ends_with_the_right_outcomes_in_real_processes_too(
    caller: Caller, jobs: list[tuple[list[Any], int]]
) -> None:
    for (items, _), job_id in [(job, caller.run(job[0], option=job[1])) for job in jobs]:
        deadline = time.monotonic() + 60
        while (state := caller.status(job_id))["status"] in ("IN_QUEUE", "IN_PROGRESS"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        made = [each["result"] if each["success"] else each["failure"]["type"] for each in state["output"]]
        assert made == [DEADLY.get(item, item) for item in items]
