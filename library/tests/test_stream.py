"""The engine as a function: ordered, bounded, cancellable; nothing that the task does costs another item."""

import asyncio
import json
import threading
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

import pytest

from aggregating_worker.calls.stream import Stream
from aggregating_worker.outcome.bucket import Access, Bucket
from aggregating_worker.outcome.overflow import CHUNK_BYTES, Output
from aggregating_worker.outcome.result import Outcome
from tests.engine import Gauge, make, others_done, stream_of, success


async def collect(stream: Stream, items: Sequence[Any]) -> list[list[Outcome]]:
    return [chunk async for chunk in stream_of(stream, items)]


def bodies(stream: Stream, items: Sequence[Any]) -> list[dict[str, Any]]:
    return [outcome.body for chunk in asyncio.run(collect(stream, items)) for outcome in chunk]


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_work_goes_on_while_a_chunk_is_being_posted_up_to_the_lookahead(kind: str) -> None:
    begun: list[int] = []
    reached = threading.Event()

    def note(item: int) -> None:
        begun.append(item)
        if len(begun) == 5:
            reached.set()

    def blocking(item: int, job: object) -> None:
        note(item)

    async def awaiting(item: int, job: object) -> None:
        note(item)

    async def scenario() -> None:
        stream = make(blocking if kind == "blocking" else awaiting, lookahead=5)
        async with aclosing(stream_of(stream, range(100))) as chunks:
            await anext(chunks)
            assert await asyncio.to_thread(reached.wait, 10)
            for _ in range(100):  # every turn that the feeder could use to go too far
                await asyncio.sleep(0)
            assert begun == [0, 1, 2, 3, 4]
            await anext(chunks)
            await anext(chunks)
            assert len(begun) <= 7

    asyncio.run(scenario())


def test_a_call_that_something_else_cancels_before_it_begins_is_a_failure() -> None:
    async def process(item: int, job: object) -> int:
        if item == 0:
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                if "Runner._await" in repr(task.get_coro()):
                    task.cancel()
        return item

    first, *others = bodies(make(process), range(3))
    assert first["result"] == 0
    assert [each["failure"]["type"] for each in others] == ["CancelledError"] * 2


def test_the_first_result_is_not_held_back_for_a_fuller_chunk() -> None:
    async def scenario() -> None:
        last = asyncio.Event()

        async def process(item: int, job: object) -> int:
            if item == 9:
                await last.wait()
            return item

        stream = make(process, chunk_size=64, item_concurrency=3)
        async with aclosing(stream_of(stream, range(10))) as chunks:
            seen: list[int] = []
            while len(seen) < 9:
                seen += [outcome.body["result"] for outcome in await anext(chunks)]
            last.set()
            assert seen == list(range(9))

    asyncio.run(scenario())


def test_what_became_ready_meanwhile_is_one_chunk_of_at_most_a_megabyte() -> None:
    def process(item: int, job: object) -> str:
        return "x" * item

    async def scenario() -> list[list[int]]:
        stream = make(process, chunk_size=64, item_concurrency=1)
        items = [1, 2, 400_000, 400_000, 400_000, 3]
        sizes = []
        async with aclosing(stream_of(stream, items)) as chunks:
            async for chunk in chunks:
                sizes.append([len(outcome.body["result"]) for outcome in chunk])
                await others_done(stream)
        return sizes

    sizes = asyncio.run(scenario())
    assert sizes[1:] == [[2, 400_000, 400_000], [400_000, 3]]


def test_a_result_that_fits_into_a_chunk_to_the_byte_goes_with_it() -> None:
    async def process(item: int, job: object) -> str:
        return "x" * item

    async def scenario(more: int) -> list[int]:
        around = success(0, "").size
        stream = make(process, chunk_size=64, item_concurrency=1)
        last = CHUNK_BYTES - 400_000 - 2 * around - len(", ") + more
        made = []
        async with aclosing(stream_of(stream, [1, 400_000, last])) as chunks:
            async for chunk in chunks:
                made.append(len(chunk))
                await others_done(stream)
        return made

    assert [asyncio.run(scenario(more)) for more in (0, 1)] == [[1, 2], [1, 1, 1]]


def test_how_far_an_item_is_goes_where_it_can_be_shown() -> None:
    async def process(item: str, job: object, context: Any) -> str:
        context.progress(item)
        await shown.wait()
        return item

    async def scenario() -> None:
        told: list[tuple[str, bytes]] = []

        async def send(job_id: str, value: bytes) -> bool:
            told.append((job_id, value))
            shown.set()
            return True

        stream = make(process)
        stream.send_progress = send
        async with aclosing(stream_of(stream, ["half"], job_id="mine")) as chunks:
            assert [outcome.success async for chunk in chunks for outcome in chunk] == [True]
        assert told == [("mine", b'[{"index": 0, "value": "half"}]')]

    shown = asyncio.Event()
    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_a_timed_out_item_fails_at_once_and_the_others_do_not() -> None:
    release = threading.Event()

    def blocking(item: int, job: object) -> int:
        if item == 1:
            release.wait(20)
        return item

    async def awaiting(item: int, job: object) -> int:
        if item == 1:
            await asyncio.Event().wait()
        return item

    for function in (blocking, awaiting):
        found = bodies(make(function, item_timeout=0.5, item_concurrency=2), range(4))
        assert [body.get("result") for body in found] == [0, None, 2, 3]
        assert found[1]["failure"] == {
            "type": "TimeoutError",
            "message": "No result within 0.5 s per item (ITEM_TIMEOUT).",
        }
    release.set()


def test_a_timed_out_blocking_call_keeps_its_slot_until_it_returns() -> None:
    release = threading.Event()
    gauge = Gauge()

    def process(item: int, job: object) -> int:
        with gauge:
            if item == 0:
                release.wait(20)
            return item

    async def scenario() -> None:
        stream = make(process, item_timeout=0.5, item_concurrency=1)
        async with aclosing(stream_of(stream, [0, 1])) as chunks:
            [first] = await anext(chunks)
            assert first.body["failure"]["type"] == "TimeoutError"
            release.set()
            [second] = await anext(chunks)
            assert second.body["result"] == 1
        assert gauge.most == 1

    asyncio.run(scenario())


def test_an_async_call_that_ignores_cancellation_holds_nothing_up() -> None:
    async def scenario() -> None:
        stop = asyncio.Event()

        async def process(item: int, job: object) -> int:
            while item == 0 and not stop.is_set():
                try:
                    await stop.wait()
                except asyncio.CancelledError:
                    continue
            return item

        stream = make(process, item_timeout=0.5, item_concurrency=2)
        [[first], [second]] = await asyncio.wait_for(collect(stream, [0, 1]), 10)
        assert first.body["failure"]["type"] == "TimeoutError"
        assert second.body["result"] == 1
        stop.set()

    asyncio.run(scenario())


def test_results_with_files_are_not_late_for_the_uploads_of_others() -> None:
    """There are more results than threads for uploads: copying their files must not wait behind those."""
    uploads = threading.Event()

    class Shelf(Bucket):
        def store(self, *_: Any) -> str:
            uploads.wait(60)
            return "https://localhost"

    async def process(item: int, job: object) -> bytes:
        return bytes(1_000)

    async def scenario() -> None:
        stream = make(process, item_timeout=10)
        access = {"endpointUrl": "https://localhost", "accessId": "a", "accessSecret": "b", "bucketName": "c"}
        output = Output("job", 40, 10_000_000, bucket=Shelf(Access.model_validate(access)), inline_file_bytes=1)

        async def deliver() -> list[Outcome]:
            return [outcome async for chunk in stream_of(stream, range(40), output=output) for outcome in chunk]

        async with asyncio.timeout(30):
            collecting = asyncio.create_task(deliver())
            await asyncio.sleep(0)
            while stream.slots.under_way:
                await asyncio.sleep(0)
            uploads.set()
            assert all(outcome.success for outcome in await collecting)

    asyncio.run(scenario())


def test_results_that_are_stored_come_in_their_order_among_the_others() -> None:
    class Shelf(Bucket):
        def store(self, key: str, *_: Any) -> str:
            return f"https://localhost/{key}"

    async def scenario() -> None:
        access = {"endpointUrl": "https://localhost", "accessId": "a", "accessSecret": "b", "bucketName": "c"}
        output = Output("job", 4, 2_500_000, bucket=Shelf(Access.model_validate(access)))
        stream = make(lambda item, job: "x" * item)
        jobs = stream_of(stream, [2_000_000, 1, 1_000_000, 2], output=output)
        found = [outcome.body async for chunk in jobs for outcome in chunk]
        assert [each.get("result_url") for each in found] == [
            "https://localhost/job/0.json",
            None,
            "https://localhost/job/2.json",
            None,
        ]
        assert [each["index"] for each in found] == [0, 1, 2, 3]

    asyncio.run(scenario())


def test_a_batch_that_raises_fails_only_the_guilty_item() -> None:
    calls: list[list[int]] = []

    def process_batch(items: list[int], job: object) -> list[float]:
        calls.append(items)
        return [1 / item for item in items]

    found = bodies(make(process_batch, batched=True, batch_size=4), [1, 2, 0, 4, 5])
    assert [body.get("result") for body in found] == [1, 0.5, None, 0.25, 0.2]
    assert found[2]["failure"]["type"] == "ZeroDivisionError"
    assert calls == [[1, 2, 0, 4], [1, 2], [0, 4], [0], [4], [5]]


@pytest.mark.parametrize("returned", [[1], [1, 2, 3], "ab", {1: 1, 2: 2}, None, 5])
def test_a_batch_with_the_wrong_results_says_so(returned: object) -> None:
    found = bodies(make(lambda _items, _job: returned, batched=True), ["a", "b"])
    assert [body["failure"]["type"] for body in found] == ["WrongResults"] * 2
    assert found[0]["failure"]["message"].endswith("for 2 items.")


@pytest.mark.parametrize("posting", [True, False], ids=["while posting", "while waiting"])
@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_a_cancelled_job_starts_no_further_call_and_leaves_nothing_behind(kind: str, posting: bool) -> None:
    """Cancelled as the SDK does it: the consuming task, with nobody calling ``aclose``."""
    begun: list[int] = []
    release = threading.Event()
    cleaned: list[int] = []

    def blocking(item: int, job: object) -> int:
        begun.append(item)
        if item:
            release.wait(20)
        return item

    async def awaiting(item: int, job: object) -> int:
        begun.append(item)
        try:
            if item:
                await asyncio.Event().wait()
        finally:
            cleaned.append(item)
        return item

    async def scenario() -> None:
        stream = make(blocking if kind == "blocking" else awaiting, item_concurrency=3)
        first = asyncio.Event()

        async def consume() -> None:
            async for _ in stream_of(stream, range(50)):
                first.set()
                if posting:
                    await asyncio.Event().wait()

        consumer = asyncio.create_task(consume())
        await first.wait()
        while len(begun) < 4:
            await asyncio.sleep(0)
        consumer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consumer
        del consumer
        release.set()
        await others_done(stream)
        assert begun == [0, 1, 2, 3]
        if kind == "async":
            assert sorted(cleaned) == begun

    asyncio.run(scenario())


def test_jobs_take_turns_at_the_slots() -> None:
    """A long job does not keep a short one, sent later, waiting for its end."""

    async def scenario() -> None:
        order: list[str] = []

        async def process(item: str, job: object) -> None:
            order.append(item)
            await asyncio.sleep(0)

        stream = make(process, item_concurrency=1)
        await asyncio.gather(collect(stream, ["long"] * 50), collect(stream, ["short"] * 3))
        assert order[:8].count("short") == 3

    asyncio.run(scenario())


def test_a_batch_that_nobody_waits_for_is_not_retried() -> None:
    calls: list[list[int]] = []
    begun, release = threading.Event(), threading.Event()

    def process_batch(items: list[int], job: object) -> list[int]:
        calls.append(items)
        begun.set()
        release.wait(20)
        raise ValueError("no")

    async def scenario() -> None:
        stream = make(process_batch, batched=True, batch_size=4)
        caller = asyncio.create_task(collect(stream, range(4)))
        assert await asyncio.to_thread(begun.wait, 10)
        caller.cancel()
        await asyncio.wait([caller])
        release.set()
        await others_done(stream)
        assert calls == [[0, 1, 2, 3]]

    asyncio.run(scenario())


def test_a_cancellation_that_one_item_leaves_behind_does_not_meet_the_next() -> None:
    async def process_batch(items: list[int], job: object) -> list[int]:
        if 0 in items:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            raise ValueError("no")
        await asyncio.sleep(0)
        return items

    found = bodies(make(process_batch, batched=True), [0, 1, 2])
    assert [body.get("result") for body in found] == [None, 1, 2]


def test_a_chunk_of_results_is_a_megabyte_at_most_with_all_that_is_put_around_it() -> None:
    async def process(item: int, job: object) -> str:
        return "x" * item

    async def scenario() -> None:
        overhead = 41  # of an envelope around its result
        half = 1_000_000 // 2 - overhead - 8
        for items in ([1, half, half], [1, half + 1, half + 1], [1] + [900] * 1_200):
            stream = make(process, chunk_size=2_000, lookahead=2_000)
            async with aclosing(stream_of(stream, items)) as chunks:
                async for chunk in chunks:
                    body = json.dumps({"output": [outcome.body for outcome in chunk]}, ensure_ascii=False)
                    assert len(body.encode()) <= 1_000_000
                    await others_done(stream)

    asyncio.run(scenario())


@pytest.mark.parametrize(("kind", "at_once"), [("blocking", 4), ("async", 32), ("blocking batch", 1)])
def test_as_many_calls_are_under_way_as_suits_the_kind_of_function(kind: str, at_once: int) -> None:
    """A call returns when ``at_once`` of them have begun; one more would be seen by the gauge."""
    gauge = Gauge()
    full = threading.Event()

    def note() -> None:
        if gauge.inside == at_once:
            full.set()

    def blocking(item: int, job: object) -> int:
        with gauge:
            note()
            return item if full.wait(10) else -1

    async def awaiting(item: int, job: object) -> int:
        with gauge:
            note()
            return item if await asyncio.to_thread(full.wait, 10) else -1

    def blocking_batch(items: list[int], job: object) -> list[int]:
        with gauge:
            note()
            return items if full.wait(10) else [-1] * len(items)

    functions: dict[str, Callable[..., Any]] = {
        "blocking": blocking,
        "async": awaiting,
        "blocking batch": blocking_batch,
    }
    found = bodies(make(functions[kind], batched="batch" in kind, batch_size=2), range(40))
    assert [body["result"] for body in found] == list(range(40))
    assert gauge.most == at_once


def test_the_memory_that_a_job_takes_does_not_grow_with_its_items() -> None:
    """Beyond what it yields: the SDK keeps that for the aggregate, this test does not."""

    async def process(item: int, job: object) -> str:
        return str(item) * 10_000

    async def drain(items: int) -> int:
        output = Output("job", items, 10**9, chunked=True)
        tracemalloc.start()
        async with aclosing(stream_of(make(process, chunk_size=8), range(items), output=output)) as chunks:
            async for _ in chunks:
                pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    few, many = asyncio.run(drain(300)), asyncio.run(drain(3_000))
    assert many < few + 1_000_000  # of the 100 MB that all results would take
