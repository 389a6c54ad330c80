"""One set of slots for all jobs: what jobs share, what they never mix, and that none waits in vain."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import aclosing
from contextvars import Context, ContextVar
from functools import cached_property
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregating_worker.calls import slots
from aggregating_worker.calls.again import Call, suspects
from aggregating_worker.calls.health import Health
from aggregating_worker.calls.pace import CROWD_AT_MOST, Pace
from aggregating_worker.calls.room import Room
from aggregating_worker.calls.stream import Stream
from aggregating_worker.calls.turns import Turns
from aggregating_worker.calls.work import Options, Work
from aggregating_worker.failed import ItemFailed
from aggregating_worker.outcome.overflow import Output
from aggregating_worker.outcome.result import Outcome, Raised
from aggregating_worker.process.attempt import Attempt
from aggregating_worker.process.function import TaskFunction
from aggregating_worker.process.threads import Threads
from aggregating_worker.process.within import Within
from aggregating_worker.refusal import Refused
from aggregating_worker.request import Invalid
from aggregating_worker.settings import Settings
from tests.engine import Job, make, others_done, run, stream_of, success


class Cached(Job):
    """A job that works out something of its items."""

    @cached_property
    def count(self) -> int:
        return len(self.items)


def results(envelopes: list[dict[str, Any]]) -> list[Any]:
    return [envelope.get("result", envelope.get("failure", {}).get("type")) for envelope in envelopes]


class BatchQueue:
    """A ``process_batch`` whose first call waits until ``go`` is set, so that the next one fills up."""

    def __init__(self, act: Callable[[Any], Any] = lambda item: item) -> None:
        self.calls: list[list[Any]] = []
        self.jobs: list[Job] = []
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self._act = act

    async def __call__(self, items: list[Any], job: Job) -> list[Any]:
        self.calls.append(list(items))
        self.jobs.append(job)
        self.begun.set()
        await self.go.wait()
        return [self._act(item) for item in items]


async def together(stream: Stream, batches: BatchQueue, *jobs: dict[str, Any]) -> list[list[Any]]:
    """Do ``jobs`` at once while an earlier call still runs; return their results."""
    first = asyncio.create_task(run(stream, ["first"]))
    await batches.begun.wait()
    others = [asyncio.create_task(run(stream, job_id=str(number), **job)) for number, job in enumerate(jobs)]
    while len(stream.slots.room.unmade) < len(jobs) + 1:
        await asyncio.sleep(0)
    batches.go.set()
    await first
    return [results(await other) for other in others]


def test_items_of_many_jobs_share_a_call() -> None:
    async def scenario() -> None:
        batches = BatchQueue()
        stream = make(batches, batched=True)
        found = await together(stream, batches, *({"items": [number]} for number in range(32)))
        assert found == [[number] for number in range(32)]
        assert batches.calls == [["first"], list(range(32))]
        assert batches.jobs[1].items == list(range(32))

    asyncio.run(scenario())


def test_the_job_of_a_call_has_the_items_of_that_call_of_whichever_jobs() -> None:
    async def scenario() -> None:
        batches = BatchQueue()
        stream = make(batches, batched=True, batch_size=2)
        found = await together(stream, batches, *({"items": [n, -n]} for n in (1, 2, 3)), {"items": [4, 5, 6]})
        assert found == [[1, -1], [2, -2], [3, -3], [4, 5, 6]]
        assert [job.items for job in batches.jobs] == batches.calls

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"option": 1}, {"option": 2}),
        ({"option": 1}, {"option": True}),
        ({"option": [1]}, {"option": [1.0]}),
        ({"option": {"a": 1}}, {"option": {"a": 1, "b": 2}}),
        ({"secret": "mine"}, {"secret": "yours"}),
    ],
    ids=str,
)
def test_different_options_never_share_a_call(one: dict[str, Any], other: dict[str, Any]) -> None:
    async def scenario() -> None:
        batches = BatchQueue()
        stream = make(batches, batched=True)
        jobs = [{"items": [n], **(one if n % 2 else other)} for n in range(6)]
        assert await together(stream, batches, *jobs) == [[n] for n in range(6)]
        assert all(len({n % 2 for n in call}) == 1 for call in batches.calls[1:])
        for call, job in zip(batches.calls[1:], batches.jobs[1:], strict=True):
            expected = Job.model_validate({"items": call, **(one if call[0] % 2 else other)})
            assert repr(job) == repr(expected)
            assert job.secret == expected.secret

    asyncio.run(scenario())


def test_options_that_say_the_same_share_a_call_whatever_objects_they_are() -> None:
    async def scenario() -> None:
        batches = BatchQueue()
        stream = make(batches, batched=True)
        once = "".join(["on", "ce"])
        jobs = [{"items": [0], "option": [once, once]}, {"items": [1], "option": ["".join(["on", "ce"]), "once"]}]
        assert await together(stream, batches, *jobs) == [[0], [1]]
        assert batches.calls == [["first"], [0, 1]]

    asyncio.run(scenario())


def test_what_a_job_has_worked_out_of_its_items_is_not_handed_on_with_those_of_others() -> None:
    async def count(items: list[Any], job: Cached) -> list[int]:
        return [job.count] * len(items)

    async def scenario() -> None:
        stream = make(count, batched=True, batch_size=2, batch_wait=60)
        jobs = [Cached(items=[0]), Cached(items=[0])]
        assert [job.count for job in jobs] == [1, 1]
        streams = [stream_of(stream, job.items, job) for job in jobs]
        chunks = await asyncio.gather(*map(anext, streams))
        assert [outcome.body["result"] for [outcome] in chunks] == [2, 2]
        for each in streams:
            await each.aclose()

    asyncio.run(scenario())


def test_one_bad_item_costs_no_other_job_anything() -> None:
    async def scenario() -> None:
        batches = BatchQueue(lambda item: 1 / item)
        stream = make(batches, batched=True)
        jobs = [{"items": [n, n]} for n in (1, 0, 2, 4)]
        found = await together(stream, batches, *jobs)
        assert found == [[1, 1], ["ZeroDivisionError"] * 2, [0.5, 0.5], [0.25, 0.25]]

    asyncio.run(scenario())


def test_a_job_that_is_cancelled_in_a_shared_call_disturbs_no_other_and_costs_no_further_call() -> None:
    async def scenario() -> None:
        batches = BatchQueue()
        stream = make(batches, batched=True, batch_size=4)
        first = asyncio.create_task(run(stream, ["first"]))
        await batches.begun.wait()
        leaving = asyncio.create_task(run(stream, ["leaves"] * 50, "leaving"))
        staying = asyncio.create_task(run(stream, [1, 2, 3], "staying"))
        while len(stream.slots.room.unmade) < 3:
            await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])
        batches.go.set()
        assert results(await first) == ["first"]
        assert results(await staying) == [1, 2, 3]
        assert batches.calls == [["first"], [1, 2, 3]]

    asyncio.run(scenario())


def test_a_job_that_is_cancelled_while_its_call_runs_leaves_the_call_to_the_others() -> None:
    async def scenario() -> None:
        batches = BatchQueue()
        stream = make(batches, batched=True, batch_wait=60, batch_size=2)
        leaving = asyncio.create_task(run(stream, ["leaves"], "leaving"))
        staying = asyncio.create_task(run(stream, ["stays"], "staying"))
        await batches.begun.wait()
        leaving.cancel()
        await asyncio.wait([leaving])
        batches.go.set()
        assert results(await staying) == ["stays"]
        assert batches.calls == [["leaves", "stays"]]

    asyncio.run(scenario())


@pytest.mark.parametrize("cancelled", [1, 2, 3])
def test_a_job_that_waits_starts_though_all_that_came_before_it_were_cancelled(cancelled: int) -> None:
    """Each has other options, and nothing else comes that would make the slots look again."""

    async def scenario() -> None:
        batches = BatchQueue()
        stream = make(batches, batched=True)
        first = asyncio.create_task(run(stream, ["first"]))
        await batches.begun.wait()
        leaving = [asyncio.create_task(run(stream, ["leaves"], option=number)) for number in range(cancelled)]
        waiting = asyncio.create_task(run(stream, ["waits"], option="waits"))
        while len(stream.slots.room.unmade) < cancelled + 2:
            await asyncio.sleep(0)
        for job in leaving:
            job.cancel()
        await asyncio.wait(leaving)
        batches.go.set()
        async with asyncio.timeout(10):
            assert [results(await job) for job in (first, waiting)] == [["first"], ["waits"]]
        assert batches.calls == [["first"], ["waits"]]

    asyncio.run(scenario())


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 64).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))))
def test_one_guilty_item_costs_about_twice_the_logarithm_of_its_batch(size_and_guilty: tuple[int, int]) -> None:
    size, guilty = size_and_guilty
    calls = []

    def process_batch(items: list[int], job: object) -> list[int]:
        calls.append(items)
        if guilty in items:
            raise ValueError("no")
        return items

    async def scenario() -> None:
        found = results(await run(make(process_batch, batched=True, batch_size=64), list(range(size))))
        assert found == [number if number != guilty else "ValueError" for number in range(size)]

    asyncio.run(scenario())
    assert len(calls) <= 1 + 2 * (size - 1).bit_length()


def test_each_try_gets_items_as_fresh_as_the_first() -> None:
    def process_batch(items: list[dict[str, str]], job: object) -> list[str]:
        for item in items:
            item["text"] = item.pop("raw")
        if any(item["text"] == "bad" for item in items):
            raise ValueError("no")
        return [item["text"] for item in items]

    async def scenario() -> None:
        items = [{"raw": "a"}, {"raw": "b"}, {"raw": "bad"}, {"raw": "c"}]
        assert results(await run(make(process_batch, batched=True), items)) == ["a", "b", "ValueError", "c"]

    asyncio.run(scenario())


def test_a_batch_whose_halves_fail_alike_is_tried_item_by_item() -> None:
    """So a batch in which everything fails costs hardly more calls than it has items."""
    calls = []

    def process_batch(items: list[int], job: object) -> list[int]:
        calls.append(items)
        raise ValueError("no")

    async def scenario() -> None:
        assert results(await run(make(process_batch, batched=True), list(range(32)))) == ["ValueError"] * 32

    asyncio.run(scenario())
    whole = list(range(32))
    assert calls == [whole, whole[:16], whole[16:], *([item] for item in whole)]


def test_an_exception_that_a_batch_returns_is_the_failure_of_its_item() -> None:
    def process_batch(items: list[int], job: object) -> list[object]:
        return [items[0], KeyError("second"), items[2]]

    found = asyncio.run(run(make(process_batch, batched=True), [0, 1, 2]))
    assert results(found) == [0, "KeyError", 2]
    assert found[1]["failure"]["message"] == "'second'"


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("text", "str instead of a list for 1 item."),
        (None, "NoneType instead of a list for 1 item."),
        ([], "0 results for 1 item."),
        ((1, 2), "2 results for 1 item."),
    ],
)
def test_what_is_no_list_of_a_result_each_is_said(returned: object, said: str) -> None:
    def process_batch(items: list[int], job: object) -> object:
        return returned

    [envelope] = asyncio.run(run(make(process_batch, batched=True), [0]))
    assert envelope["failure"] == {"type": "WrongResults", "message": f"process_batch returned {said}"}


def test_halves_that_fail_otherwise_are_halved_each() -> None:
    calls = []

    def process_batch(items: list[int], job: object) -> list[int]:
        calls.append(items)
        if 7 in items:
            raise KeyError("no")
        if 0 in items:
            raise ValueError("no")
        return items

    async def scenario() -> None:
        found = results(await run(make(process_batch, batched=True), list(range(8))))
        assert found == ["ValueError", 1, 2, 3, 4, 5, 6, "KeyError"]

    asyncio.run(scenario())
    assert calls[:5] == [[*range(8)], [0, 1, 2, 3], [4, 5, 6, 7], [0, 1], [2, 3]]
    assert len(calls) == 11


def test_each_try_has_its_own_time_and_only_what_hangs_is_late() -> None:
    calls = []

    async def process_batch(items: list[int], job: object) -> list[int]:
        calls.append(items)
        if len(items) == 8:
            raise ValueError("together they fail")
        if 5 in items:
            await asyncio.Event().wait()
        return items

    async def scenario() -> None:
        found = results(await run(make(process_batch, batched=True, item_timeout=0.05), list(range(8))))
        assert found == [0, 1, 2, 3, 4, "TimeoutError", 6, 7]

    asyncio.run(scenario())
    assert calls == [[*range(8)], [0, 1, 2, 3], [4, 5, 6, 7], [4, 5], [6, 7], [4], [5]]


def test_there_is_room_for_another_job_as_soon_as_a_long_one_has_its_first_outcome_though_that_is_late() -> None:
    """Its call goes on, and nobody takes the chunk."""
    released, rooms = asyncio.Event(), list[int]()

    async def process(item: int, job: object) -> int:
        while item == 0 and not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue
        return item

    async def scenario() -> None:
        stream = make(process, item_concurrency=1, item_timeout=0.05)
        stream.slots.on_room = lambda: rooms.append(stream.slots.for_jobs())
        chunks = stream_of(stream, [*range(3)], Job(items=[*range(3)]))
        try:
            assert [outcome.success for outcome in await anext(chunks)] == [False]
            assert stream.slots.under_way == rooms[-1] == 1
        finally:
            released.set()
        assert [outcome.success async for chunk in chunks for outcome in chunk] == [True, True]

    asyncio.run(scenario())
    assert rooms[0] == 0


def test_a_blocking_batch_over_its_time_is_halved_once_it_has_ended() -> None:
    late = threading.Event()

    def process_batch(items: list[str], job: object) -> list[str]:
        if "slow" in items:
            late.wait(60)
            raise ValueError("after its time")
        return items

    async def scenario() -> None:
        stream = make(process_batch, batched=True, item_timeout=0.1)
        job = asyncio.create_task(run(stream, ["good", "fine", "slow", "well"]))
        async with asyncio.timeout(20):
            while not any(attempt.late for seat in stream.slots._seats for attempt in seat.process.attempts.values()):
                await asyncio.sleep(0.01)
            late.set()
            assert results(await job) == ["good", "fine", "ValueError", "well"]

    asyncio.run(scenario())


@pytest.mark.parametrize("batched", [False, True])
def test_a_job_of_one_item_waits_for_two_calls_at_most_beside_one_of_thousands(batched: bool) -> None:
    async def scenario() -> None:
        calls: list[list[Any]] = []

        async def process_batch(items: list[Any], job: object) -> list[Any]:
            calls.append(items)
            await asyncio.sleep(0)
            return items

        async def process(item: Any, job: object) -> Any:
            return (await process_batch([item], job))[0]

        stream = make(process_batch if batched else process, batched=batched, item_concurrency=1)
        long = asyncio.create_task(run(stream, ["long"] * 3_000))
        while len(calls) < 5:
            await asyncio.sleep(0)
        for option in (None, "another"):
            before = len(calls)
            assert results(await run(stream, ["short"], option=option)) == ["short"]
            [place] = [place for place, call in enumerate(calls[before:]) if "short" in call]
            assert place <= 2
        long.cancel()
        await asyncio.wait([long])

    asyncio.run(scenario())


def test_a_call_that_is_not_full_waits_for_as_long_as_it_is_told_to() -> None:
    async def scenario() -> None:
        batches = BatchQueue()
        batches.go.set()
        stream = make(batches, batched=True, batch_size=3, batch_wait=60)
        jobs = [asyncio.create_task(run(stream, [number], str(number))) for number in range(3)]
        assert [results(await job) for job in jobs] == [[0], [1], [2]]
        assert batches.calls == [[0, 1, 2]]
        impatient = make(batches, batched=True, batch_size=3, batch_wait=0.05)
        assert results(await run(impatient, ["alone"])) == ["alone"]

    asyncio.run(scenario())


@pytest.mark.parametrize("wait", [0.0105, 0.0004])
def test_a_call_that_waits_starts_in_time_by_a_coarse_clock_too(wait: float) -> None:
    async def scenario() -> None:
        stream = make(lambda items, job: items, batched=True, batch_size=3, batch_wait=wait)
        async with asyncio.timeout(10):
            for _ in range(50):
                made = await asyncio.gather(run(stream, ["one"]), run(stream, ["another"]))
                assert [*map(results, made)] == [["one"], ["another"]]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # its clock has whole milliseconds
        runner.run(scenario())


def test_there_is_room_for_what_could_start_and_for_no_more() -> None:
    async def scenario() -> None:
        go = asyncio.Event()

        async def process(item: int, job: object) -> int:
            await go.wait()
            return item

        stream = make(process, item_concurrency=4)
        stream.slots.serve()
        assert stream.slots.for_jobs() == 4
        jobs = [asyncio.create_task(run(stream, [1])) for _ in range(3)]
        await asyncio.sleep(0)
        assert stream.slots.for_jobs() == 1
        jobs.append(asyncio.create_task(run(stream, [1] * 9)))
        await asyncio.sleep(0)
        assert stream.slots.for_jobs() <= 0
        go.set()
        await asyncio.gather(*jobs)
        assert stream.slots.for_jobs() == 4

    asyncio.run(scenario())


def test_a_batch_has_room_for_the_call_after_the_one_under_way() -> None:
    async def scenario() -> None:
        batches = BatchQueue()
        stream = make(batches, batched=True, batch_size=8)
        jobs = [asyncio.create_task(run(stream, [1]))]
        await batches.begun.wait()
        assert stream.slots.for_jobs() == 8
        jobs.append(asyncio.create_task(run(stream, [1] * 10)))
        await asyncio.sleep(0)
        assert stream.slots.for_jobs() <= 0
        batches.go.set()
        await asyncio.gather(*jobs)

    asyncio.run(scenario())


def test_jobs_that_their_callers_have_given_one_id_are_two() -> None:
    """As they can be on the SDK's realtime route."""

    async def scenario() -> None:
        begun, go = asyncio.Event(), asyncio.Event()

        async def process(item: str, job: object) -> str:
            if item == "slow":
                begun.set()
                await go.wait()
            return item

        stream = make(process)
        slow = asyncio.create_task(run(stream, ["slow"], "mine"))
        await begun.wait()
        assert results(await run(stream, ["quick"], "mine")) == ["quick"]
        assert len(stream.slots.room.unmade) == 1
        go.set()
        assert results(await slow) == ["slow"]

    asyncio.run(scenario())


def test_ten_thousand_jobs_leave_nothing_behind() -> None:
    async def scenario() -> None:
        async def process_batch(items: list[int], job: object) -> list[int]:
            return items

        stream = make(process_batch, batched=True)
        for number in range(10_000):
            assert results(await run(stream, [number], option=number % 3)) == [number]
        await others_done(stream)
        slots = stream.slots
        [process] = [seat.process for seat in slots._seats]
        assert isinstance(process, Within)
        assert len(slots.room) == len(slots.turns._groups) == 0
        assert len(process.attempts) == len(process._known) == 0
        assert len(process._runner._jobs) == len(process._runner._calls) == 0

    asyncio.run(scenario())


def test_half_of_a_batch_that_does_not_return_keeps_the_other_half_from_nothing() -> None:
    """It holds its own slot, and the other half is tried in the next one that is free."""
    other, release = threading.Event(), threading.Event()

    def process_batch(items: list[str], job: object) -> list[str]:
        if len(items) == 4:
            raise ValueError("together they fail")
        if "hangs" in items:
            release.wait(60)
        else:
            other.set()
        return items

    async def scenario() -> None:
        items = ["hangs", "beside it", "good", "fine"]
        job = asyncio.create_task(run(make(process_batch, batched=True, item_concurrency=2), items))
        assert await asyncio.to_thread(other.wait, 20)
        release.set()
        assert results(await job) == items

    asyncio.run(scenario())


def test_where_no_thread_can_be_started_for_an_upload_its_item_fails_and_no_slot_is_lost() -> None:
    class NoThreads(Threads):
        def run(self, call: Callable[[], None]) -> None:
            raise RuntimeError("can't start new thread")

    def process(item: int, job: object) -> Any:
        return bytes(item) if item else "text"

    async def scenario() -> None:
        stream = make(process, item_concurrency=1)
        stream._finishers = NoThreads()
        found = await run(stream, [1_000, 0, 1_000])
        assert results(found) == ["NotStored", "text", "NotStored"]
        assert found[0]["failure"]["message"] == "can't start new thread"
        await others_done(stream)

    asyncio.run(scenario())


def test_a_call_runs_in_its_own_jobs_context_and_a_shared_one_in_none() -> None:
    """Whoever has freed the slot."""
    batch_id: ContextVar[str] = ContextVar("batch_id", default="none")

    async def process(item: int, job: object) -> str:
        await asyncio.sleep(0)
        return batch_id.get()

    async def process_batch(items: list[int], job: object) -> list[str]:
        return [batch_id.get()] * len(items)

    async def job(stream: Stream, name: str) -> list[Any]:
        batch_id.set(name)
        return results(await run(stream, [1, 2, 3], name))

    async def scenario() -> None:
        stream = make(process, item_concurrency=1)
        found = await asyncio.gather(*(job(stream, name) for name in "abc"))
        assert found == [[name] * 3 for name in "abc"]
        shared = make(process_batch, batched=True, batch_wait=60, batch_size=6)
        assert [*await asyncio.gather(job(shared, "a"), job(shared, "b"))] == [["none"] * 3] * 2

    asyncio.run(scenario())


def test_a_call_that_is_not_full_waits_from_when_the_first_of_its_items_came() -> None:
    def work(job_id: str, items: int) -> Work:
        output = Output(job_id, items, 10_000)
        threads = Threads()
        return Work(
            [*range(items)], Options.of(None), job_id, output, shares_calls=True, lookahead=9, finishers=threads
        )

    turns = Turns()
    old, new = work("old", 1), work("new", 2)
    for each in (old, new):
        turns.enter(each)
    old.waits_since, new.waits_since = 10.0, 20.0
    [group] = turns._groups.values()
    assert group.since == 10.0
    assert len(turns.draw(2, lambda _: False)) == 2
    [group] = turns._groups.values()
    assert (group.waiting, group.since) == (1, 20.0)


def test_an_item_does_not_fail_by_that_of_a_job_that_was_cancelled_during_their_call() -> None:
    async def scenario() -> None:
        calls: list[list[str]] = []
        begun, go = asyncio.Event(), asyncio.Event()

        async def process_batch(items: list[str], job: Job) -> list[str]:
            calls.append(items)
            begun.set()
            await go.wait()
            if "bad" in items:
                raise ValueError("bad")
            return items

        stream = make(process_batch, batched=True)
        first = asyncio.create_task(run(stream, ["first"]))
        await begun.wait()
        one, other = asyncio.create_task(run(stream, ["good"])), asyncio.create_task(run(stream, ["bad"]))
        while len(stream.slots.room) < 3:
            await asyncio.sleep(0)
        go.set()
        await first
        go.clear()
        while len(calls) < 2:
            await asyncio.sleep(0)
        other.cancel()
        await asyncio.wait([other])
        go.set()
        assert results(await one) == ["good"]
        assert calls == [["first"], ["good", "bad"], ["good"]]

    asyncio.run(asyncio.wait_for(scenario(), 20))


class Silent(Within):
    """A process that says nothing until it is killed, and then what it had to say."""

    held: list[bytes] | None = None

    def _say(self, frames: bytes) -> None:
        if self.held is None:
            super()._say(frames)
        else:
            self.held.append(frames)

    def kill(self) -> None:
        held, self.held = self.held or [], None
        for frames in held:
            self._hear(frames)
        assert self._owner
        self._owner.gone(self, [*self.attempts.values()], "was killed", on_purpose=False)


LATE = {"type": "TimeoutError", "message": "No result within 0.05 s per item (ITEM_TIMEOUT)."}


@pytest.mark.parametrize(
    ("silent", "made"), [(1, {"success": True, "result": 7}), (2, {"success": False, "failure": LATE})]
)
def test_a_call_that_ends_as_its_silent_process_is_killed_is_tried_again_and_is_late_the_second_time(
    monkeypatch: pytest.MonkeyPatch, silent: int, made: dict[str, Any]
) -> None:
    monkeypatch.setattr(slots, "LET_GO_AFTER", 0.05)
    calls = 0

    async def process(item: int, job: Any) -> int:
        nonlocal calls
        calls += 1
        if calls <= silent:
            process_of_task.held = []
            await asyncio.Event().wait()
        return item

    task: Any = SimpleNamespace(process=process, load=lambda: None)
    described = TaskFunction.of(task)
    process_of_task = Silent(task, described)
    stream = Stream(described, [process_of_task], Settings(item_timeout=0.05))
    assert asyncio.run(asyncio.wait_for(run(stream, [7]), 20)) == [{"index": 0, **made}]
    assert calls == 2


class WithGpu(Within):
    """A process that can be replaced, as far as its owner knows."""

    def retire(self) -> None:
        asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        in_hand, self.attempts = [*self.attempts.values()], {}
        assert self._owner
        self._owner.gone(self, in_hand, "ended with status 0", on_purpose=True)


@pytest.mark.parametrize("bad", [0, 3])
def test_one_item_that_breaks_the_gpu_costs_no_other_its_result(bad: int) -> None:
    calls: list[list[int]] = []

    async def process_batch(items: list[int], job: Any) -> list[int]:
        calls.append(items)
        if bad in items:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return items

    task: Any = SimpleNamespace(process_batch=process_batch, load=lambda: None)
    described = TaskFunction.of(task)
    stream = Stream(described, [WithGpu(task, described)], Settings(batch_size=4))
    expected: list[Any] = [0, 1, 2, 3]
    expected[bad] = "RuntimeError"
    assert results(asyncio.run(asyncio.wait_for(run(stream, [0, 1, 2, 3]), 20))) == expected
    assert [bad] in calls
    assert len(calls) <= 8


def test_what_answers_while_suspects_are_tried_side_by_side_has_all_of_its_time() -> None:
    class Answers(Attempt[Any]):
        async def wait(self, *_: Any) -> bool:
            self.answered = self.items != ["silent"]
            return False

    async def killed(item: str, in_use: int) -> bool:
        seat = slots.Seat(mock.Mock(), trial=deque(), in_use=in_use)
        engine = make(lambda item, job: item, item_timeout=10).slots
        assert not await engine._in_time(seat, Answers(1, [item], Context()))
        return seat.process.kill.called and seat.silent  # type: ignore[attr-defined]

    asked = [("silent", 2), ("silent", 1), ("answers", 2)]
    assert [asyncio.run(killed(*each)) for each in asked] == [True, False, False]


def test_a_call_that_is_not_full_waits_for_the_jobs_that_may_come_back() -> None:
    group: Any = SimpleNamespace(waiting=2, since=5.0)
    pace = Pace(3, 0)
    assert pace.wait_until(group, 1) == 0
    pace.ended(10.0, 0.05, crowd=2)
    assert [pace.wait_until(group, jobs) for jobs in (1, 2)] == [10.05, 0]
    pace.ended(20.0, 60.0, crowd=2)
    assert pace.wait_until(group, 1) == 20.0 + CROWD_AT_MOST
    group.waiting = 3
    assert pace.wait_until(group, 1) == Pace(3, 7.0).wait_until(group, 1) == 0
    group.waiting = 2
    assert Pace(3, 7.0).wait_until(group, 1) == 12.0


def test_no_time_passes_for_a_call_that_is_tried_alone_while_the_worker_is_frozen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, turns = 0.0, 0

    class Frozen(Attempt[Any]):
        async def wait(self, *_: Any) -> bool:
            nonlocal now, turns
            now, turns = now + 1_000, turns + 1
            return turns == 2

    async def in_time() -> bool:
        seat = slots.Seat(mock.Mock(), trial=deque())
        engine = make(lambda item, job: item, item_timeout=10).slots
        return await engine._in_time(seat, Frozen(1, ["item"], Context()))

    monkeypatch.setattr(slots, "time", SimpleNamespace(monotonic=lambda: now))
    assert asyncio.run(in_time())


def test_calls_of_several_jobs_that_fail_alike_in_a_row_have_the_process_replaced() -> None:
    no, other = Raised("ValueError", "no", ""), Raised("ValueError", "another", "")
    health = Health()
    assert [health.failed(no, [job]) for job in "aab"] == [False, False, True]
    assert [health.failed(no, [job]) for job in "aaab"] == [False, False, False, True]
    assert health.hopeless
    health.succeeded()
    assert [health.failed(no, jobs) for jobs in ("ab", "ab", "ab")] == [False, False, True]
    assert not health.hopeless
    health.succeeded()
    for interrupted in (lambda: health.succeeded(), lambda: health.failed(other, "c")):
        assert [health.failed(no, [job]) for job in "ab"] == [False, False]
        interrupted()
    deliberate = Raised("ItemFailed", "no", "", deliberate=True)
    assert not any(health.failed(deliberate, [job]) for job in "abcdef")
    assert [health.failed(no, [job]) for job in "abc"] == [False, False, True]


def test_a_job_that_enters_again_while_it_has_its_turn_has_no_other() -> None:
    turns, works = Turns(), [mock.Mock(startable=2, in_turn=False, group=b"", waits_since=0.0) for _ in range(2)]
    for work in (*works, *works):
        turns.enter(work)
    assert turns.jobs == works


def test_a_job_that_comes_once_the_worker_is_lost_ends_it_too() -> None:
    async def scenario() -> list[str]:
        stream = make(lambda item, job: item)
        reasons = list[str]()
        stream.slots.on_end = reasons.append
        stream.slots.lost("no process can load")
        assert [each["result"] for each in await run(stream, [1])] == [1]
        return reasons

    assert asyncio.run(scenario()) == ["no process can load"] * 2


def test_what_is_left_of_every_job_fails_where_no_other_worker_could_do_it() -> None:
    async def process(item: int, job: Any) -> int:
        if item:
            await asyncio.Event().wait()
        return item

    async def scenario() -> None:
        stream = make(process)
        async with aclosing(stream_of(stream, [0, 1, 1])) as chunks:
            await anext(chunks)
            stream.slots.lost("no process can load")
            left = [outcome.body["failure"] async for chunk in chunks for outcome in chunk]
        assert left == [{"type": "ProcessDied", "message": "no process can load"}] * 2

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_a_worker_that_one_item_asks_to_be_refreshed_is_whatever_the_others_do() -> None:
    def process(item: int, job: Any) -> int:
        raise ItemFailed("no", refresh_worker=True) if item else ValueError("no")

    async def refreshed(*items: int) -> bool:
        output = Output("job", len(items), 1_000_000)
        async with aclosing(stream_of(make(process, item_concurrency=1), items, output=output)) as chunks:
            assert not any([outcome.success async for chunk in chunks for outcome in chunk])
        return output.refresh_worker

    assert [asyncio.run(refreshed(*items)) for items in ((0, 0), (1, 0), (0, 1))] == [False, True, True]


def work_of(items: int, **values: Any) -> Work:
    output = Output("mine", items, 1_000_000)
    finishers = Threads(1)
    return Work(range(items), Options.of(None), "mine", output, shares_calls=False, finishers=finishers, **values)


def test_what_is_made_out_of_turn_counts_until_all_before_it_is_made() -> None:
    work = work_of(3, lookahead=3)
    first, second, third = (success(index, "x" * 10**index) for index in range(3))
    counted = [work.unadmitted]
    for place, outcome in ((2, third), (1, second), (1, first), (0, first)):
        work.settle(place, outcome)
        counted.append(work.unadmitted)
    assert counted == [0, third.size, third.size + second.size, third.size + second.size, 0]
    assert [work.next_ready(10**6) for _ in range(4)] == [first, second, third, None]


def test_what_cannot_be_finished_is_the_failure_of_its_item(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        taken: list[dict[str, Any]] = []
        done = asyncio.Event()
        work = work_of(1, lookahead=1, look=done.set)
        work.finish(lambda: Outcome(int("pieces"), True, b""), lambda outcome: taken.append(outcome.body), 7)
        await done.wait()
        [body] = taken
        assert (body["index"], body["success"], body["failure"]["type"]) == (7, False, "ValueError")

    asyncio.run(asyncio.wait_for(scenario(), 20))
    assert "| mine | Item 7 failed\nTraceback" in capsys.readouterr().out.replace("\\n", "\n")


def test_an_item_that_input_does_not_accept_fails_by_that_name() -> None:
    async def process(item: object, job: object) -> object:
        return item

    async def scenario() -> list[Any]:
        chunks = stream_of(make(process), [1, Invalid("it should be a number")], Job(items=[]))
        return [outcome.body async for chunk in chunks for outcome in chunk]

    [_, failed] = asyncio.run(scenario())
    assert failed["failure"] == {"type": "InvalidItem", "message": "it should be a number"}


@pytest.mark.parametrize(
    ("jobs", "replaced"),
    [("good no", 0), ("no no no", 0), ("good no no good no", 0), ("good no no no", 1)],
)
def test_a_process_is_replaced_once_three_calls_fail_alike_though_others_have_succeeded(
    jobs: str, replaced: int
) -> None:
    def process(item: str, job: object) -> str:
        if item == "no":
            raise ValueError(item)
        return item

    async def scenario() -> int:
        stream = make(process, item_concurrency=1)
        with mock.patch.object(stream.slots, "_replace") as replace:
            for item in jobs.split():
                await run(stream, [item])
        return replace.call_count

    assert asyncio.run(scenario()) == replaced


def test_suspects_are_halved_until_one_item_is_alone() -> None:
    items: list[Any] = [*range(5)]
    call = Call(items, deaths=2)
    [[first], [second]] = suspects([call])
    assert ([*first.items], [*second.items]) == (items[:2], items[2:])
    assert (first.deaths, second.deaths) == (2, 2)
    one, two, three = (Call(items[place : place + 1]) for place in range(3))
    assert suspects([one, two, three]) == [[one], [two, three]]
    assert suspects([one]) == [[one]]


def test_there_is_room_for_what_those_that_wait_leave_free_and_for_one_job_beside_a_long_one_that_has_begun() -> None:
    def room(waiting: int, *begun: bool) -> int:
        turns: Any = SimpleNamespace(waiting=waiting, jobs=[SimpleNamespace(begun=each) for each in begun])
        return Room(turns, 100).for_jobs(2, 3)

    assert [room(0), room(5, False), room(5, True, True)] == [6, 1, 1]
    assert [room(6, False), room(6, True), room(9, True), room(6, True, True), room(6)] == [0, 1, 1, 0, 0]


def test_while_too_many_bytes_wait_there_is_no_room_and_the_oldest_job_goes_on() -> None:
    def job(name: str, size: int, unadmitted: int = 0) -> Any:
        return mock.Mock(job_id=name, output=SimpleNamespace(size=size), unadmitted=unadmitted)

    turns: Any = SimpleNamespace(waiting=0, jobs=[])
    room = Room(turns, 100)
    assert (room.oldest, room.full) == (None, False)
    first, again, last = job("a", 50), job("a", 0, 30), job("b", 0, 20)
    for each in (first, again, last):
        room.enter(each)
    assert (room.full, room.oldest, room.for_jobs(1, 1), len(room)) == (True, first, 0, 3)
    assert room.of("a") == [first, again]
    room.leave(again)
    assert (room.full, room.oldest, room.for_jobs(1, 1), len(room)) == (False, first, 1, 2)
    room.leave(first)
    assert (room.oldest, len(room)) == (last, 1)


def test_why_an_item_fails_is_in_the_log_under_its_job_with_where_it_was_raised(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def process(item: Any, job: Any) -> Any:
        if item == "raise":
            raise ValueError("no")
        return {"made": object()}

    def process_batch(items: list[Any], job: Any) -> list[Any]:
        raise KeyError("none")

    def said(function: Callable[..., Any], *items: Any) -> str:
        envelopes = asyncio.run(run(make(function, batched=function is process_batch), [*items], "mine"))
        types.append([envelope["failure"]["type"] for envelope in envelopes])
        return capsys.readouterr().out.replace("\\n", "\n")

    types: list[list[str]] = []
    out = said(process, "raise", "return", threading.Lock())
    for message, error in (
        ("Item 0 failed", "ValueError: no"),
        ("Item 1 has no result that can be sent", "Unsendable: result.made: object cannot be returned"),
        ("Item 2 cannot be handed to the task's process", "TypeError: cannot pickle '_thread.lock' object"),
    ):
        _, found, after = out.partition(f"| mine | {message}\nTraceback (most recent call last):\n")
        assert found
        assert error in after
    out = said(process_batch, 0, 1)
    assert "| mine | A batch of 2 items failed: trying its halves\nTraceback (most recent call last):\n" in out
    assert [out.count(f"| mine | Item {index} failed\nTraceback") for index in (0, 1)] == [1, 1]
    assert types == [["ValueError", "TypeError", "InvalidItem"], ["KeyError", "KeyError"]]
    with pytest.raises(Refused, match="options cannot be handed to the task's process: cannot pickle"):
        asyncio.run(run(make(process), [1], option=threading.Lock()))
    assert "The options of a job cannot be handed to the task's process" in capsys.readouterr().out
