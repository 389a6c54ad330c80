"""The platform freezes idle workers and thaws them minutes later: connections have been closed, and time has passed."""

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from aggregating_worker.delivery import sender
from aggregating_worker.delivery.post import Answer
from aggregating_worker.delivery.sender import Sender
from aggregating_worker.intake import loop
from aggregating_worker.job import JobRunner
from aggregating_worker.local import LocalEndpoint
from aggregating_worker.settings import Settings
from aggregating_worker.testing.faulty import Faulty, Held
from tests.conftest import Caller, MakeWorker
from tests.tasks import hostile

FROZEN = 1.0
"""Seconds, in which every connection of the worker is closed."""
Freeze = Callable[[], Any]


@pytest.fixture(scope="module")
def faulty() -> Iterator[Faulty]:
    with Faulty() as faulty:
        yield faulty


@pytest.fixture(scope="module")
def caller(faulty: Faulty, make_worker: MakeWorker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    log = tmp_path_factory.mktemp("log") / "worker.log"
    with (
        log.open("wb") as output,
        LocalEndpoint(faulty.command, cwd=make_worker("hostile"), log=output) as endpoint,
        Caller(endpoint, log) as caller,
    ):
        faulty.endpoint_url = endpoint.url
        caller.runsync([0])
        yield caller


@pytest.fixture(params=["whole", "worker only"])
def freeze(request: pytest.FixtureRequest, caller: Caller, faulty: Faulty) -> Freeze:
    """Stop the worker, with the processes of its task or without, while the block runs, and ``FROZEN`` at least."""

    @contextmanager
    def frozen() -> Iterator[None]:
        [worker] = caller.endpoint.workers.running
        process = psutil.Process(worker.process.pid)
        stopped = [process, *(process.children(recursive=True) if request.param == "whole" else [])]
        for each in stopped:
            each.suspend()
        faulty.go_away()
        faulty.come_back()
        yield
        time.sleep(FROZEN)
        for each in reversed(stopped):
            each.resume()

    return frozen


def check_next(caller: Caller) -> None:
    """Check that the next job is done at once, by the same worker."""
    began = time.monotonic()
    state = caller.runsync([1])
    assert time.monotonic() - began < 10  # a connection that nobody notices to be closed costs 15 s, or 90
    assert (state["status"], state["workerId"]) == ("COMPLETED", "worker-1")


def results(state: dict[str, Any]) -> list[Any]:
    return [envelope["result"] for envelope in state["output"]]


def test_while_it_is_idle(caller: Caller, freeze: Freeze) -> None:
    with freeze():
        pass
    check_next(caller)


def test_while_jobs_wait_for_it(caller: Caller, freeze: Freeze) -> None:
    began = caller.log.read_text().count("sent again")
    with freeze():
        job_ids = [caller.run([number]) for number in range(3)]
    for number, job_id in enumerate(job_ids):
        assert [chunk["result"] for chunk in caller.stream(job_id)] == [number]
        assert "retries" not in caller.status(job_id)
    assert caller.log.read_text().count("sent again") == began
    check_next(caller)


@pytest.mark.parametrize("arrives", [False, True])
@pytest.mark.parametrize("route", ["job-stream", "job-done"])
def test_in_a_post(caller: Caller, faulty: Faulty, freeze: Freeze, route: str, arrives: bool) -> None:
    held = Held(arrives=arrives)
    faulty.plan(route, held)
    job_id = caller.run([5])
    held.reached.result(20)
    with freeze():
        pass
    assert {chunk["result"] for chunk in caller.stream(job_id)} == {5}
    state = caller.status(job_id)
    assert (state["status"], results(state)) == ("COMPLETED", [5])
    assert "retries" not in state
    check_next(caller)


def test_in_a_call(caller: Caller, freeze: Freeze, fifo: Path, tmp_path: Path) -> None:
    job_id = caller.run([{"read": str(fifo)}, {"touch": str(tmp_path / "trace")}])
    began = caller.log.read_text().count("sent again")
    with fifo.open("w") as file, freeze():  # it can be opened once the call is under way
        file.write("thawed")
        file.close()
    assert [chunk["result"] for chunk in caller.stream(job_id)] == ["thawed", None]
    assert (tmp_path / "trace").read_text() == "."
    assert caller.log.read_text().count("sent again") == began
    check_next(caller)


def test_a_job_that_came_while_the_worker_was_frozen_in_a_poll_is_taken_though_its_time_is_over() -> None:
    """The event loop finds the answer and the end of its time at once."""

    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)

        async def fetch(session: object, count: int) -> list[dict[str, Any]]:
            job_id = await asyncio.get_running_loop().sock_recv(ours, 10)
            return [{"id": job_id.decode(), "input": {}}]

        taking = loop.Loop({}, JobRunner(hostile, Settings(), []))
        taking._fetch, taking._patience = fetch, 0.1
        with ours, theirs:
            polling = asyncio.create_task(taking._take(None, 1))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            theirs.send(b"a")
            time.sleep(0.2)  # noqa: ASYNC251  # frozen
            assert [job["id"] for job in await polling] == ["a"]
            with pytest.raises(TimeoutError):
                await taking._take(None, 1)

    asyncio.run(scenario())


def test_what_is_not_taken_is_sent_again_after_a_freeze_that_is_longer_than_deliver_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sender, "ANSWER_WITHIN", 0.05)
    answers = iter([500, 200])

    class Frozen:
        async def post(self, *_: object) -> Answer:
            status = next(answers)
            time.sleep(0.5 * (status == 500))  # noqa: ASYNC251  # frozen
            return Answer(status, "")

    sending = Sender(0.3, poster=Frozen())  # type: ignore[arg-type]

    async def scenario() -> None:
        session = SimpleNamespace(headers={})
        await sending._post(session, "http://127.0.0.1/$ID?gpu=none", [b"{}"], "job", time.monotonic())

    asyncio.run(scenario())
    assert sending.taken == 1
