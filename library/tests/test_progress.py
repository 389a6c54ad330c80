"""How far a job's items are: shown by ``/status``, never after the result, and at no cost to it."""

import asyncio
import json
import socket
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from runpod.serverless.modules import rp_http

from aggregating_worker.delivery import progress, sender
from aggregating_worker.delivery.progress import Progress
from aggregating_worker.delivery.sender import Sender
from aggregating_worker.local import LocalEndpoint
from aggregating_worker.testing.faulty import Faulty, Forward
from tests.conftest import Caller, MakeWorker, Serve
from tests.test_post import serving

KINDS = {"plain": {}, "within": {"PROCESSES": "0"}, "async": {}, "batch": {}}
TASKS = {"async": "progressing_async", "batch": "progressing_batch"}


def shown(caller: Caller, job_id: str, *wanted: Any) -> list[Any]:
    """Return the progress of a job once it is ``wanted``, or that of its last state."""
    deadline = time.monotonic() + 10
    while True:
        output = caller.status(job_id).get("output")
        found = output["progress"] if isinstance(output, dict) else []
        if found == [*wanted] or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_status_shows_the_latest_of_each_running_item(serve: Serve, fifo: Path, kind: str) -> None:
    """However it is said: by the context or by the SDK's function, in the call's thread or in another."""
    caller = serve(TASKS.get(kind, "progressing"), ITEM_CONCURRENCY="2", **KINDS[kind])
    for item in (
        {"say": [1, {"é": [0.5, None]}]},
        {"in a thread": 2},
        {"by the SDK": 3},
        {"by the SDK in a thread": 4},
    ):
        [said] = item.values()
        value = said[-1] if isinstance(said, list) else said
        job_id = caller.submit({"input": {"items": [{**item, "read": str(fifo)}], "first_index": 40}})
        expected = {"index": 40, "value": value}
        assert shown(caller, job_id, expected) == [expected]
        fifo.write_text("")
        assert [envelope["success"] for envelope in caller.stream(job_id)] == [True]
        state = caller.status(job_id)
        assert (state["status"], len(state["output"])) == ("COMPLETED", 1)


def test_what_has_ended_is_shown_no_longer(serve: Serve, fifos: list[Path]) -> None:
    caller = serve("progressing", ITEM_CONCURRENCY="2")
    job_id = caller.run([{"say": [number], "read": str(fifo)} for number, fifo in enumerate(fifos[:2])])
    both = [{"index": 0, "value": 0}, {"index": 1, "value": 1}]
    assert shown(caller, job_id, *both) == both
    fifos[0].write_text("")
    assert shown(caller, job_id, both[1]) == both[1:]
    fifos[1].write_text("")
    assert [envelope["success"] for envelope in caller.stream(job_id)] == [True, True]


@pytest.fixture
def faulty() -> Any:
    with Faulty() as faulty:
        yield faulty


def test_none_comes_after_the_result(make_worker: MakeWorker, faulty: Faulty, tmp_path: Path) -> None:
    """Of sixty jobs that say how far they are, and return at once."""
    posted: list[tuple[str, bool]] = []

    async def note(request: web.BaseRequest, forward: Forward) -> web.StreamResponse:
        body = json.loads(await request.read())
        posted.append((request.path.split("/")[-1], body.get("status") == "IN_PROGRESS"))
        return await forward()

    faulty.plan("job-done", *[note] * 1_000)
    log = tmp_path / "worker.log"
    with (
        log.open("wb") as output,
        LocalEndpoint(faulty.command, cwd=make_worker("progressing"), log=output) as endpoint,
        Caller(endpoint, log) as caller,
    ):
        faulty.endpoint_url = endpoint.url
        job_ids = [caller.run([{"by the SDK": number}] * 3) for number in range(60)]
        for job_id in job_ids:
            assert len([*caller.stream(job_id)]) == 3
            assert caller.status(job_id)["status"] == "COMPLETED"
    for job_id in job_ids:
        ends = [progress for job, progress in posted if job == job_id]
        assert ends == [True] * (len(ends) - 1) + [False]
    assert any(progress for _, progress in posted)


@pytest.mark.parametrize("task", ["progressing", "progressing_async"])
def test_a_value_that_cannot_be_sent_or_a_fork_that_says_one_costs_nothing(serve: Serve, task: str) -> None:
    caller = serve(task)
    state = caller.runsync(["unsendable", "unsendable", "in a fork", {"say": ["x"] * 1_000}])
    assert [envelope["success"] for envelope in state["output"]] == [True] * 4
    assert state["output"][2]["result"] == 0
    assert caller.log.read_text().count("Not sent: progress: object cannot be returned") == 1


def test_it_is_posted_once_in_a_while_in_order_and_waited_for_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.05)
    posted: list[tuple[float, str]] = []
    held = asyncio.Event()

    async def send(job_id: str, entries: bytes) -> bool:
        posted.append((time.monotonic(), entries.decode()))
        if b"last" in entries:
            await held.wait()
        return True

    async def scenario() -> None:
        showing = Progress("job", send)
        for number in range(200):
            showing.tell(number % 2, b"%d" % number)
            await asyncio.sleep(0.001)
        showing.drop(0)
        showing.drop(7)
        showing.tell(1, b'"last"')
        while "last" not in posted[-1][1]:
            await asyncio.sleep(0.001)
        ending = asyncio.create_task(showing.end())
        await asyncio.sleep(0.01)
        assert not ending.done()
        held.set()
        await ending
        showing.tell(1, b"later")
        await asyncio.sleep(0.1)

    asyncio.run(scenario())
    times = [when for when, _ in posted]
    assert all(later - earlier >= 0.05 for earlier, later in pairwise(times))
    latest = [max(entry["value"] for entry in json.loads(text)) for _, text in posted[:-1]]
    assert latest == sorted(latest)
    assert posted[-1][1] == '[{"index": 1, "value": "last"}]'


def test_that_the_platform_takes_none_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0)
    answers = [True, False, False, True, False]
    posted = asyncio.Event()

    async def send(job_id: str, entries: bytes) -> bool:
        assert (job_id, entries) == ("job", b'[{"index": 0, "value": 1}, {"index": 3, "value": 2}]')
        posted.set()
        return answers.pop(0)

    async def scenario() -> None:
        showing = Progress("job", send)
        showing.tell(3, b"2")
        while answers:
            showing.tell(0, b"1")
            posted.clear()
            await posted.wait()
        await showing.end()

    asyncio.run(scenario())
    assert capsys.readouterr().out.count("| job | The platform does not take the progress of this job.") == 1


def test_one_that_is_never_answered_is_waited_for_no_longer_than_it_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "PROGRESS_WITHIN", 0.1)
    sending = Sender(300, session=SimpleNamespace(headers={}))

    async def scenario() -> bool:
        async with asyncio.timeout(5):
            return await sending.send_progress("job", b"[]")

    with serving(say_nothing) as url:
        monkeypatch.setattr(rp_http, "JOB_DONE_URL", f"{url}/$ID?gpu=none")
        assert not asyncio.run(scenario())


def say_nothing(connection: socket.socket) -> None:
    while connection.recv(1_000):
        pass
