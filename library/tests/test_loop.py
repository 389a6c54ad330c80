"""The job loop, through the SDK: no rest while work waits, no job where it cannot start, no wait at the end."""

import asyncio
import json
import math
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from aiohttp import web

from aggregating_worker.intake import loop
from aggregating_worker.job import JobRunner
from aggregating_worker.local import LocalEndpoint
from aggregating_worker.settings import Settings
from aggregating_worker.testing.faulty import Faulty, Forward, Held
from tests.conftest import Caller, MakeWorker, Serve
from tests.tasks import hostile


@pytest.fixture
def faulty() -> Iterator[Faulty]:
    with Faulty() as faulty:
        yield faulty


@contextmanager
def behind(faulty: Faulty, folder: Path, log: Path, **env: str) -> Iterator[Caller]:
    """Serve an endpoint whose worker reaches it through ``faulty`` only."""
    with log.open("wb") as output:
        endpoint = LocalEndpoint(faulty.command, cwd=folder, env=env, log=output)
        with endpoint, Caller(endpoint, log) as caller:
            faulty.endpoint_url = endpoint.url
            yield caller


def read(caller: Caller, fifos: list[Path]) -> list[str]:
    """Submit a job for each of ``fifos`` that ends when it is written to."""
    return [caller.run([{"read": str(fifo)}]) for fifo in fifos]


def taken(caller: Caller, *job_ids: str) -> list[bool]:
    return [caller.endpoint.queue.jobs[job_id].taken is not None for job_id in job_ids]


@pytest.mark.parametrize("task", ["hostile", "hostile_async", "hostile_batch"])
def test_jobs_follow_one_another_without_a_rest(serve: Serve, task: str) -> None:
    """The SDK's own loop would take at least a second each: two minutes for these."""
    caller = serve(task, JOB_CONCURRENCY="1")
    caller.runsync([0])
    job_ids = [caller.run([number]) for number in range(120)]
    assert caller.post("/runsync?wait=30000", json={"input": {"items": ["last"]}}).json()["status"] == "COMPLETED"
    assert [caller.status(job_id)["output"][0]["result"] for job_id in job_ids] == list(range(120))


def test_a_worker_takes_as_many_jobs_as_it_can_start_and_the_next_when_one_ends(
    serve: Serve, fifos: list[Path]
) -> None:
    caller = serve("hostile", ITEM_CONCURRENCY="3")
    jobs = read(caller, fifos)
    while taken(caller, *jobs).count(True) < 3:
        caller.get("/health")
    fifos[0].write_text("done")
    assert next(caller.stream(jobs[0]))["result"] == "done"
    while not all(taken(caller, *jobs[:4])):
        caller.get("/health")
    assert taken(caller, *jobs) == [True] * 4 + [False] * 2
    for fifo in fifos[1:]:
        fifo.write_text("done")
    assert all(next(caller.stream(job))["result"] == "done" for job in jobs[1:])


def test_a_number_of_jobs_is_the_most_and_one_means_one_by_one(serve: Serve, fifos: list[Path]) -> None:
    caller = serve("hostile", JOB_CONCURRENCY="1")
    jobs = read(caller, fifos[:2])
    while not taken(caller, jobs[0])[0]:
        caller.get("/health")
    fifos[0].write_text("done")
    assert next(caller.stream(jobs[0]))["result"] == "done"
    fifos[1].write_text("done")
    assert next(caller.stream(jobs[1]))["result"] == "done"
    first, second = (caller.endpoint.queue.jobs[job] for job in jobs)
    assert first.ended is not None
    assert second.taken is not None
    assert first.ended <= second.taken


def test_long_jobs_are_spread_over_idle_workers(serve: Serve, fifos: list[Path]) -> None:
    caller = serve("hostile", workers=2, ITEM_CONCURRENCY="1")
    while caller.get("/health").json()["workers"]["ready"] < 2:
        pass
    for two in (fifos[:2], fifos[2:4], fifos[4:]):
        jobs = [caller.run([{"read": str(fifo)}, 0, 1]) for fifo in two]
        while not all(taken(caller, *jobs)):
            caller.get("/health")
        workers = {caller.endpoint.queue.jobs[job].worker for job in jobs}
        assert workers == {"worker-1", "worker-2"}
        for fifo, job in zip(two, jobs, strict=True):
            fifo.write_text("done")
            assert len(list(caller.stream(job))) == 3


@pytest.mark.parametrize("task", ["hostile", "hostile_batch"])
def test_a_job_of_one_item_is_done_beside_a_long_one(serve: Serve, task: str) -> None:
    """By the same worker, whose slots are all in use."""
    caller = serve(task, ITEM_CONCURRENCY="1")
    long = caller.run([{"bytes": 1_000}] * 3_000)
    next(caller.stream(long))
    for number in range(3):
        assert caller.runsync([number])["output"][0]["result"] == number
        assert caller.status(long)["status"] == "IN_PROGRESS"
    assert len(list(caller.stream(long))) == 2_999


def test_a_worker_that_is_told_to_stop_while_it_is_idle_drops_its_polls(
    make_worker: MakeWorker, faulty: Faulty, tmp_path: Path
) -> None:
    """Neither poll is ever answered."""
    with behind(faulty, make_worker("hostile"), tmp_path / "log") as caller:
        caller.runsync([0])
        polls = [Held(), Held()]
        faulty.plan("job-take", polls[0])
        faulty.plan("job-stop", polls[1])
        caller.runsync([1])  # answers the poll that waits
        polls[0].reached.result(20)
        [worker] = caller.endpoint.workers.running
        worker.process.send_signal(signal.SIGTERM)
        assert worker.exited.result(5) == 0


def test_a_job_that_arrives_as_the_worker_is_told_to_stop_is_done(
    make_worker: MakeWorker, faulty: Faulty, tmp_path: Path
) -> None:
    """The answer to its poll has begun; the rest comes later than the worker waits for a poll."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(request: web.BaseRequest, forward: Forward) -> web.StreamResponse:
        answer = await forward()
        assert isinstance(answer.body, bytes)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(answer.body[:10])
        begun.set()
        await go_on.wait()
        await response.write(answer.body[10:])
        return response

    with behind(faulty, make_worker("hostile"), tmp_path / "log") as caller:
        caller.runsync([0])
        faulty.plan("job-take", slowly)
        caller.runsync([1])  # answers the poll that waits
        job_id = caller.run([2])
        faulty.wait(begun)
        [worker] = caller.endpoint.workers.running
        worker.process.send_signal(signal.SIGTERM)
        with pytest.raises(TimeoutError):  # it waits for the rest
            worker.exited.result(1)
        faulty.set(go_on)
        assert worker.exited.result(10) == 0
        assert caller.status(job_id)["output"][0]["result"] == 2


def test_a_job_that_is_on_its_way_as_the_worker_is_told_to_stop_is_done(
    make_worker: MakeWorker, faulty: Faulty, tmp_path: Path
) -> None:
    """Nothing of the answer has come yet: it is as far away as the answer to a ping."""
    handed, pinged = asyncio.Event(), asyncio.Event()

    async def far(_: web.BaseRequest, forward: Forward) -> web.Response:
        answer = await forward()
        handed.set()
        await pinged.wait()
        return answer

    async def ping(request: web.BaseRequest, forward: Forward) -> web.Response:
        if "runpod_version" not in request.query:  # as it is in the SDK's own, every few seconds
            pinged.set()
        return await forward()

    with behind(faulty, make_worker("hostile"), tmp_path / "log") as caller:
        caller.runsync([0])
        faulty.plan("job-take", far)
        faulty.plan("ping", *[ping] * 50)
        caller.runsync([1])  # ends the poll under way
        job_id = caller.run([2])
        faulty.wait(handed)
        [worker] = caller.endpoint.workers.running
        worker.process.send_signal(signal.SIGTERM)
        assert worker.exited.result(20) == 0
        assert caller.status(job_id)["output"][0]["result"] == 2


async def refused(session: object, count: int) -> None:
    raise ConnectionError


async def nothing(session: object, count: int) -> None:
    """Answer at once, as for a 204 or a 400."""


async def something_else(session: object, count: int) -> list[Any]:
    return [{"id": "without an input"}, None]


@pytest.mark.parametrize("fetch", [refused, nothing, something_else])
def test_takes_that_bring_nothing_are_a_second_apart_at_most_and_never_without_a_pause(
    monkeypatch: pytest.MonkeyPatch, fetch: Callable[..., Any]
) -> None:
    """However many they are: 2 to the power of 1,024 is no float."""
    pauses: list[float] = []

    async def scenario() -> None:
        taking = loop.Loop({}, JobRunner(hostile, Settings(), []))
        taking._fetch = fetch
        monkeypatch.setattr(loop, "HELD", math.inf)  # however slow this machine is
        others = {"timeout": asyncio.timeout, "get_running_loop": asyncio.get_running_loop}
        monkeypatch.setattr(loop, "asyncio", SimpleNamespace(sleep=sleep, **others))
        for _ in range(2_000):
            with suppress(ConnectionError):
                assert await taking._take(None, 1) == []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    asyncio.run(scenario())
    assert len(pauses) == 2_000
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (0.02, 1.0)


def test_a_job_that_is_given_out_twice_is_taken_once() -> None:
    """In one answer, and in another one while it runs."""

    async def twice(session: object, count: int) -> list[dict[str, Any]]:
        return [{"id": job_id, "input": {}} for job_id in ("a", "b", "a")]

    async def scenario() -> None:
        taking = loop.Loop({}, JobRunner(hostile, Settings(), []))
        taking._fetch = twice
        assert [job["id"] for job in await taking._take(None, 3)] == ["a", "b"]
        taking._started("a")
        taking.jobs_tasks["b"] = asyncio.create_task(asyncio.sleep(0))
        taking._started("b")
        assert [job["id"] for job in await taking._take(None, 3)] == ["a"]

    asyncio.run(scenario())


def test_a_job_that_cannot_be_read_fails_with_a_sentence_and_the_next_one_is_done(
    make_worker: MakeWorker, faulty: Faulty, tmp_path: Path
) -> None:
    async def too_long(_: web.BaseRequest, forward: Forward) -> web.StreamResponse:
        """Hand out a job whose item is a number that Python does not read."""
        answer = await forward()
        assert isinstance(answer.body, bytes)
        text = answer.body.replace(b"12345", b"9" * 5_000)
        return web.Response(status=answer.status, body=text, content_type="application/json")

    with behind(faulty, make_worker("hostile"), tmp_path / "log") as caller:
        caller.runsync([0])
        for route in ("job-take", "job-take-batch"):
            faulty.plan(route, *[too_long] * 9)
        caller.runsync([1])  # ends the poll under way
        state = caller.runsync([12345])
        assert state["status"] == "FAILED"
        assert state["error"].startswith("The job cannot be read: ")
        assert caller.runsync([1])["output"][0]["result"] == 1


def test_an_sdk_without_the_seams_runs_at_its_own_pace_and_says_so(serve: Serve) -> None:
    caller = serve("unseamed")
    assert [caller.runsync([number])["status"] for number in range(2)] == ["COMPLETED"] * 2
    lines = [line for line in caller.log.read_text().splitlines() if "at the SDK's own pace" in line]
    assert [json.loads(line)["level"] for line in lines] == ["WARN"]
    assert "set_scale" in lines[0]


def test_a_thousand_jobs_leave_no_more_behind_than_a_hundred(serve: Serve) -> None:
    """In the worker and in its task's processes."""
    caller = serve("hostile_batch")
    caller.runsync([0])
    [worker] = caller.endpoint.workers.running
    process = psutil.Process(worker.process.pid)
    family = [process, *process.children(recursive=True)]
    assert len(family) >= 3  # one that has imported the task, and what that has forked for the calls

    def holds(jobs: int) -> dict[str, Any]:
        with ThreadPoolExecutor(8) as callers:
            states = list(callers.map(caller.runsync, ([number] for number in range(jobs))))
        assert {state["status"] for state in states} == {"COMPLETED"}
        return {
            "threads": sum(each.num_threads() for each in family),
            "files": sum(each.num_fds() for each in family),
            "bytes": sum(each.memory_info().rss for each in family),
        }

    few, many = holds(100), holds(1_000)
    assert many["threads"] <= few["threads"] + 1
    assert many["files"] <= few["files"] + 8  # connections kept open, one for each job in hand at once
    assert many["bytes"] <= few["bytes"] + 8_000_000


def test_a_handler_that_the_sdk_would_not_stream_ends_the_worker_with_a_sentence(
    make_worker: MakeWorker, tmp_path: Path
) -> None:
    """The documented wrapper is one: a plain function that returns a generator."""
    folder = make_worker("hostile")
    text = (folder / "handler.py").read_text()
    (folder / "handler.py").write_text(
        text.replace("handler if worker.streams else local_test", "lambda job: handler(job)")
    )
    log = tmp_path / "log"
    with log.open("wb") as output, LocalEndpoint(cwd=folder, log=output) as endpoint:
        [worker] = endpoint.workers.running
        assert worker.exited.result(20) == 1
    assert "its handler must be an async generator function itself" in log.read_text()
