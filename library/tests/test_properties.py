"""For any items, outcomes, settings and moment to stop: one envelope per item, in order, within every bound."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregating_worker.calls.stream import Stream
from aggregating_worker.outcome.overflow import Output
from aggregating_worker.outcome.result import Outcome
from tests.conftest import Caller, Serve
from tests.engine import Gauge, given_up, make, others_done, stream_of
from tests.tasks.hostile import FAULTY, FINE

KINDS = ("blocking", "async", "blocking batch", "async batch")
SIZES = (0, 10, 1_000, 600_000)
"""Characters of a result. One of the largest fits a chunk, and a few of them a job."""
FAILURES = {
    "raises": ("ValueError",),
    "stops": ("StopIteration", "RuntimeError"),  # the latter in async code, where Python makes it so
    "exits": ("SystemExit",),
    "cancels": ("CancelledError",),
    "object": ("TypeError",),
    "hangs": (),
}
"""What an item can do wrong, and the types of failure that its envelope may then name, besides a timeout's."""
FAILURE_BYTES = 250
"""More bytes than the response keeps free for an item to come."""

What = int | str


@dataclass
class Plan:
    """A kind of task, its settings, and a job: closed after ``stop`` chunks, or cancelled after so many turns."""

    kind: str
    items: list[What]
    concurrency: int
    lookahead: int
    batch: int
    chunk: int
    limit: int
    stop: int | None
    cancelled: bool

    @property
    def batched(self) -> bool:
        return self.kind.endswith("batch")

    @property
    def hangs(self) -> bool:
        return "hangs" in self.items

    @property
    def group(self) -> int:
        return min(self.batch, self.lookahead) if self.batched else 1

    @property
    def at_once(self) -> int:
        """How many calls there should be at once, if there are items enough."""
        return min(self.concurrency, self.lookahead // self.group)


plans = st.builds(
    Plan,
    kind=st.sampled_from(KINDS),
    items=st.lists(st.sampled_from([*SIZES, *FAILURES]), max_size=30)
    | st.lists(st.sampled_from(SIZES[2:]), max_size=30),
    concurrency=st.integers(1, 6),
    lookahead=st.integers(1, 10),
    batch=st.integers(1, 6),
    chunk=st.integers(1, 6),
    limit=st.integers(10_000, 20_000) | st.integers(20_000, 5_000_000),
    stop=st.none() | st.integers(0, 40),
    cancelled=st.booleans(),
)


@dataclass
class Watch:
    """Both ends of the engine for one job of ``plan``: the task, and the taker of its chunks."""

    plan: Plan
    calls: Gauge = field(default_factory=Gauge)
    begun: set[int] = field(default_factory=set)
    chunks: list[list[Outcome]] = field(default_factory=list)
    streamed: int = 0
    """Results that no longer take up lookahead: all earlier ones, and all but one of the chunk that is being posted."""
    held: int = 0
    """The most results that were begun and not streamed."""
    stream: Stream = field(init=False)
    full: threading.Event = field(default_factory=threading.Event)
    """Set once there were as many calls at once as there should be."""

    def task(self) -> Callable[..., Any]:
        """Return the task; its items are their index and what to do."""

        def begin(items: list[tuple[int, What]]) -> None:
            self.begun |= {index for index, _ in items}
            self.held = max(self.held, len(self.begun) - self.streamed)
            if self.calls.inside == self.plan.at_once:
                self.full.set()

        def process_batch(items: list[tuple[int, What]], job: object) -> list[object]:
            with self.calls:
                begin(items)
                for _, what in items:
                    if what == "hangs":
                        while not given_up(self.stream):
                            time.sleep(0.001)
                        raise RuntimeError("it was given up")
                    if what == "meets":
                        self.full.wait()
                return [_act(what) for _, what in items]

        async def process_batch_async(items: list[tuple[int, What]], job: object) -> list[object]:
            with self.calls:
                begin(items)
                await asyncio.sleep(0)
                for _, what in items:
                    if what == "hangs":
                        await asyncio.Event().wait()
                    while what == "meets" and not self.full.is_set():
                        await asyncio.sleep(0)
                return [_act(what) for _, what in items]

        def process(item: tuple[int, What], job: object) -> object:
            return process_batch([item], job)[0]

        async def process_async(item: tuple[int, What], job: object) -> object:
            return (await process_batch_async([item], job))[0]

        functions: tuple[Callable[..., Any], ...] = (process, process_async, process_batch, process_batch_async)
        return dict(zip(KINDS, functions, strict=True))[self.plan.kind]

    async def take(self, items: Sequence[What], most: int | None = None) -> None:
        """Take up to ``most`` chunks as the SDK does: it posts each before it asks for the next."""
        self.begun, self.chunks, self.streamed = set(), [], 0
        self.full.clear()
        output = Output("job", len(items), self.plan.limit, chunked=self.plan.chunk > 1)
        async with aclosing(stream_of(self.stream, list(enumerate(items)), output=output)) as chunks:
            while len(self.chunks) != most:
                try:
                    chunk = await anext(chunks)
                except StopAsyncIteration:
                    return
                self.chunks.append(chunk)
                self.streamed += len(chunk) - 1
                for _ in range(10):  # turns in which a call too many would begin
                    await asyncio.sleep(0)
                self.streamed += 1

    async def carry_out(self) -> None:
        """Do the job of the plan, or give it up."""
        stop, cancelled = self.plan.stop, self.plan.cancelled
        caller = asyncio.create_task(self.take(self.plan.items, None if cancelled else stop))
        if cancelled and stop is not None:
            for _ in range(stop):
                await asyncio.sleep(0)
            caller.cancel()
        with suppress(asyncio.CancelledError):
            await caller
        begun = len(self.begun)
        await others_done(self.stream)
        if self.plan.kind.startswith("async"):
            assert len(self.begun) == begun
        assert self.calls.inside == 0

    def check(self) -> None:
        """Check what a job promises on the chunks that were taken."""
        plan = self.plan
        outcomes = [outcome for chunk in self.chunks for outcome in chunk]
        if plan.stop is None:
            assert len(outcomes) == len(plan.items)
        for index, (outcome, what) in enumerate(zip(outcomes, plan.items, strict=False)):
            assert outcome.index == index
            if outcome.success:
                assert outcome.body == {"index": index, "success": True, "result": _act(what)}
                continue
            allowed = FAILURES[what] if isinstance(what, str) else () if self._fits() else ("OutputTooLarge",)
            late = ("TimeoutError",) if plan.hangs else ()
            assert outcome.body["failure"]["type"] in allowed + late

        chunked = plan.chunk > 1
        bodies = [[outcome.body for outcome in chunk] if chunked else chunk[0].body for chunk in self.chunks]
        assert all(1 <= len(chunk) <= plan.chunk for chunk in self.chunks)
        assert all(len(json.dumps({"output": body})) <= 1_000_000 for body in bodies)
        assert len(json.dumps({"output": bodies})) <= plan.limit
        # An item may start in another thread before this one has counted what was streamed.
        unseen = 0 if plan.kind.startswith("async") else plan.chunk - 1
        assert self.held <= plan.lookahead + unseen
        assert self.calls.most <= plan.concurrency

    def _fits(self) -> bool:
        sizes = [FAILURE_BYTES + (what if isinstance(what, int) else 0) for what in self.plan.items]
        return sum(sizes) <= self.plan.limit


def _act(what: What) -> object:
    match what:
        case "raises":
            raise ValueError
        case "stops":
            raise StopIteration
        case "exits":
            raise SystemExit
        case "cancels":
            raise asyncio.CancelledError
        case "object":
            return object()
        case int():
            return "x" * what
    return what


@settings(deadline=None, max_examples=200)
@given(plan=plans)
def test_whatever_items_do_and_whenever_it_is_stopped_a_job_keeps_its_promises(plan: Plan) -> None:
    async def scenario() -> None:
        watch = Watch(plan)
        watch.stream = make(
            watch.task(),
            batched=plan.batched,
            item_concurrency=plan.concurrency,
            lookahead=plan.lookahead,
            batch_size=plan.batch,
            chunk_size=plan.chunk,
            item_timeout=0.02 if plan.hangs else 0,
        )
        async with asyncio.timeout(30):  # it takes milliseconds
            await watch.carry_out()
        watch.check()
        if not plan.hangs:  # so there is no timeout
            async with asyncio.timeout(10):  # the job before must not have cost a slot, or room
                await watch.take(["meets"] * plan.at_once * plan.group)

    threads = threading.active_count()
    asyncio.run(scenario())
    assert threading.active_count() <= threads + plan.concurrency


@pytest.fixture(scope="module")
def callers(serve: Serve) -> list[Caller]:
    """Endpoints with a worker each, of every kind of task and with chunks of one and of more."""
    return [
        serve("hostile"),
        serve("hostile_async", CHUNK_SIZE="4", LOOKAHEAD="5"),
        serve("hostile_batch", CHUNK_SIZE="64", BATCH_SIZE="3"),
    ]


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
text = st.text().map("é".__add__)  # never the name of something that the task does
values = st.recursive(plain | text, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=5)
jobs = st.lists(st.lists(values | st.sampled_from([*FINE, *FAULTY]), min_size=1, max_size=20), min_size=1, max_size=3)


@settings(deadline=None, max_examples=30)
@given(which=st.integers(0, 2), jobs=jobs)
def test_through_the_sdk_stream_and_aggregate_agree(callers: list[Caller], which: int, jobs: list[list[Any]]) -> None:
    caller = callers[which]
    for items, job_id in [(items, caller.run(items)) for items in jobs]:
        chunks = list(caller.stream(job_id))
        state = caller.status(job_id)
        assert state["status"] == "COMPLETED"
        assert chunks == state["output"]
        envelopes = [envelope for chunk in chunks for envelope in (chunk if isinstance(chunk, list) else [chunk])]
        assert [envelope["index"] for envelope in envelopes] == list(range(len(items)))
        for item, envelope in zip(items, envelopes, strict=True):
            if isinstance(item, str) and item in FAULTY:
                assert envelope["failure"]["type"] in FAULTY[item][1]
            else:
                assert envelope["result"] == (FINE[item][1] if isinstance(item, str) and item in FINE else item)
