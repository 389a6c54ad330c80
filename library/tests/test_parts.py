"""The parts of an item: on the stream while it runs, in order, and all of them in its result."""

import asyncio
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, suppress
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from aggregating_worker.delivery.parts import MOST_WAITING, PartStream
from aggregating_worker.process.run import Parts
from aggregating_worker.refusal import Refused
from tests.conftest import Caller, MakeWorker, Serve, off_runpod
from tests.engine import make, others_done, run, runner, stream_of


@pytest.fixture(scope="module", params=["parts", "parts_async"])
def caller(request: pytest.FixtureRequest, serve: Serve) -> Caller:
    return serve(request.param)


def told_apart(chunks: Any) -> tuple[dict[int, list[Any]], list[dict[str, Any]]]:
    """Return the parts of each item, and the envelopes; no part comes after its item's envelope."""
    parts: dict[int, list[Any]] = defaultdict(list)
    envelopes: list[dict[str, Any]] = []
    for chunk in chunks:
        for one in chunk if isinstance(chunk, list) else [chunk]:
            if "parts" in one:
                assert one.keys() == {"index", "parts"}
                assert one["index"] not in [envelope["index"] for envelope in envelopes]
                parts[one["index"]] += one["parts"]
            else:
                envelopes.append(one)
    return parts, envelopes


def test_parts_are_streamed_in_order_and_the_aggregate_has_the_whole(caller: Caller) -> None:
    items = [{"yield": [f"{item}-{part} " for part in range(50)]} for item in range(8)]
    job_id = caller.run(items)
    parts, envelopes = told_apart(caller.stream(job_id))
    assert parts == {index: item["yield"] for index, item in enumerate(items)}
    whole = [{"index": index, "success": True, "result": "".join(item["yield"])} for index, item in enumerate(items)]
    assert envelopes == caller.status(job_id)["output"] == whole
    assert caller.runsync(items)["output"] == whole


@pytest.mark.parametrize(("yielded", "whole"), [([], ""), (["a", 1], ["a", 1]), ([{"a": 1}], [{"a": 1}])])
def test_the_result_is_a_string_of_strings_or_else_a_list(caller: Caller, yielded: list[Any], whole: Any) -> None:
    assert caller.runsync([{"yield": yielded}])["output"][0]["result"] == whole


def test_half_of_a_surrogate_pair_waits_for_its_other_half(caller: Caller) -> None:
    job_id = caller.run([{"yield": [], "halves": True}])
    parts, envelopes = told_apart(caller.stream(job_id))
    assert parts == {0: ["a", "😀b"]}
    assert envelopes == [{"index": 0, "success": True, "result": "a😀b"}]


@given(st.text(st.sampled_from("aé😀\ud83d\ude00")) | st.text(), st.data())
def test_texts_are_put_together_wherever_they_were_cut(text: str, data: st.DataObject) -> None:
    """Half of a pair that never comes whole is handed on, too: it is refused then."""
    units = text.encode("utf-16-le", "surrogatepass")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(units) // 2), max_size=5)))
    pieces = [units[2 * begin : 2 * end] for begin, end in pairwise([0, *cuts, len(units) // 2])]
    parts = Parts()
    sent = [part for piece in pieces for part in parts.add(piece.decode("utf-16-le", "surrogatepass"))] + parts.end()
    whole = units.decode("utf-16-le", "surrogatepass")
    assert "".join(sent) == parts.whole == whole
    if not any("\ud800" <= letter <= "\udfff" for letter in whole):
        assert all(part.encode() for part in sent if part)


def test_an_error_that_is_yielded_fails_the_item_and_ends_the_generator(caller: Caller, tmp_path: Path) -> None:
    """As the SDK has it of a plain handler, for the whole job (1.12.0, ``rp_job.handle_job``)."""
    closed = tmp_path / "closed"
    item = {"yield": ["a", {"error": "no model", "code": 7}, "b"], "for ever": True, "closed": str(closed)}
    job_id = caller.run([item, {"yield": [{"error": 0.5}]}])
    parts, envelopes = told_apart(caller.stream(job_id))
    assert parts == {0: ["a"], 1: [{"error": 0.5}]}
    failure = {"type": "Error", "message": "no model", "details": {"code": 7}}
    assert envelopes[0] == {"index": 0, "success": False, "failure": failure}
    assert envelopes[1]["result"] == [{"error": 0.5}]
    assert closed.exists()


def test_the_first_part_is_not_held_back(caller: Caller, fifo: Path) -> None:
    job_id = caller.run([{"yield": ["first"], "then": {"read": str(fifo)}}])
    chunks = caller.stream(job_id)
    assert next(chunks) == {"index": 0, "parts": ["first"]}
    fifo.write_text("last")
    assert list(chunks) == [{"index": 0, "parts": ["last"]}, {"index": 0, "success": True, "result": "firstlast"}]


@pytest.mark.parametrize("bad", ["raise", "object", "exit"])
def test_an_item_that_fails_after_some_parts_is_a_failure(caller: Caller, bad: str) -> None:
    job_id = caller.run([{"yield": ["good"], "then": bad}, {"yield": ["other"]}])
    parts, envelopes = told_apart(caller.stream(job_id))
    assert parts == {0: ["good"], 1: ["other"]}
    assert [envelope["success"] for envelope in envelopes] == [False, True]


def test_a_generator_is_closed_when_its_job_is_cancelled(caller: Caller, fifo: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    job_id = caller.run([{"yield": ["first"], "closed": str(closed), "for ever": True}])
    assert next(caller.stream(job_id))["parts"][0] == "first"
    caller.post(f"/cancel/{job_id}")
    assert caller.runsync([{"yield": ["next"]}])["output"][0]["result"] == "next"
    caller.wait_for_log(job_id, "stopped after 0 of 1 item")
    while not closed.exists():
        caller.get("/health")


def test_the_time_of_an_item_is_that_of_all_its_parts(serve: Serve, tmp_path: Path) -> None:
    caller = serve("parts", ITEM_TIMEOUT="0.5")
    closed = tmp_path / "closed"
    state = caller.runsync([{"yield": ["first"], "closed": str(closed), "for ever": True}] * 8)
    assert [envelope.get("failure", {}).get("type") for envelope in state["output"]] == ["TimeoutError"] * 8
    while not closed.exists():
        caller.get("/health")


def test_an_async_generator_that_awaits_nothing_leaves_the_others_their_turn() -> None:
    async def process(item: object, job: object) -> AsyncIterator[str]:
        while True:
            yield "more"

    async def scenario() -> None:
        [failed] = await run(make(process, item_timeout=0.05), ["endless"])
        assert failed["failure"]["type"] == "TimeoutError"

    asyncio.run(scenario())


def test_no_part_comes_after_the_envelope_of_an_item_that_goes_on_over_its_time() -> None:
    yielded, sent = 0, 0
    over = asyncio.Event()

    async def process(item: object, job: object) -> AsyncIterator[str]:
        nonlocal yielded
        yield "first"
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        while not over.is_set():
            yield "more"
            yielded += 1
            await asyncio.sleep(0)

    async def send(output: object, job_id: str, index: int, parts: Sequence[bytes]) -> None:
        nonlocal sent
        sent += len(parts)

    async def scenario() -> None:
        stream = make(process, item_timeout=0.05)
        stream.send_parts = send
        try:
            async with aclosing(stream_of(stream, ["late", "late"])) as chunks:
                [first] = await anext(chunks)
                assert first.body["failure"]["type"] == "TimeoutError"
                await anext(chunks)
                before, begun = sent, yielded
                assert before
                while yielded < begun + 100:
                    await asyncio.sleep(0)
                assert sent == before
        finally:
            over.set()
        await others_done(stream)

    asyncio.run(scenario())


def test_what_the_network_cannot_take_is_missing_on_the_stream_only(serve: Serve) -> None:
    caller = serve("parts", CHUNK_SIZE="8")
    large = ["x" * 100_000] * 60
    job_id = caller.run([{"yield": large}])
    parts, _ = told_apart(caller.stream(job_id))
    assert set(parts[0]) == {"x" * 100_000}
    [[envelope]] = caller.status(job_id)["output"]
    assert envelope["result"] == "".join(large)
    assert caller.log.read_text().count("some are not on the stream") <= 1


def test_parts_that_come_during_a_post_go_with_the_next_as_many_as_may_wait(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        sent: list[tuple[str, int, Sequence[bytes]]] = []
        posted: list[dict[int, Any]] = []
        begun, go = asyncio.Event(), asyncio.Event()

        async def send(*given: Any) -> None:
            sent.append(given)
            begun.set()
            await go.wait()

        stream = PartStream("job", send, lambda: posted.append({**stream.posting}))
        stream.add(3, b"first")
        await begun.wait()
        half = b"x" * (MOST_WAITING // 2 - len(", "))
        for part in (half, half, b"", b"too much"):
            stream.add(3, part)
        stream.add(4, b"also too much")
        assert (sent, {*stream.posting}) == ([("job", 3, [b"first"])], {3})
        go.set()
        await stream.posting[3]
        stream.add(4, half * 2)
        await stream.posting[4]
        assert sent[1:] == [("job", 3, [half, half, b""]), ("job", 4, [half * 2])]
        assert (stream.posting, posted) == ({}, [{}, {}])

    asyncio.run(scenario())
    assert capsys.readouterr().out.count("| job | Parts come faster than the platform takes them") == 1


def test_the_local_test_prints_envelopes_only(make_worker: MakeWorker) -> None:
    job = json.dumps({"input": {"items": [{"yield": ["a", "b"]}]}})
    finished = subprocess.run(
        [sys.executable, "handler.py", "--test_input", job],
        cwd=make_worker("parts"),
        env=off_runpod(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert finished.returncode == 0
    assert "{'output': [{'index': 0, 'success': True, 'result': 'ab'}]}" in finished.stdout


def test_a_batch_that_yields_is_refused_at_the_start() -> None:
    class Input(BaseModel):
        items: list[int]

    def process_batch(items: list[int], job: Input) -> Any:
        yield from items

    task: Any = SimpleNamespace(Input=Input, load=lambda: None, process_batch=process_batch)
    with pytest.raises(Refused, match="only process may yield"):
        runner(task)
