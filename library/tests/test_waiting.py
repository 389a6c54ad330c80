"""A job that waits is explained, from what the endpoint says of its workers."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aggregating_worker.client import Client, JobFailed, JobUnknown, command, http, waiting
from aggregating_worker.client.waiting import why
from tests.calling import Answer, Request, environment, job_of, serve_http

JOB = {"input": {"items": [1]}}
DONE = {"id": "a", "status": "COMPLETED", "output": [{"index": 0, "success": True, "result": 1}], "stream": []}
NONE: dict[str, int] = dict.fromkeys(("idle", "initializing", "ready", "running", "throttled", "unhealthy"), 0)


def health(in_queue: int = 1, **workers: int) -> dict[str, Any]:
    return {"jobs": {"completed": 3, "inProgress": 0, "inQueue": in_queue}, "workers": NONE | workers}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (health(), ["no workers", "max workers are 0, raise them"]),
        (health(unhealthy=2), ["2 workers died at the start", "the log"]),
        (health(unhealthy=1, running=2, idle=1), ["1 worker died", "2 workers busy"]),
        (health(throttled=3), ["3 workers throttled", "no machine of the chosen kind is free"]),
        (health(initializing=1), ["1 worker starting"]),
        (health(12, running=3, ready=3), ["3 workers busy, and 12 jobs in the queue"]),
        (health(idle=1, ready=1), ["A worker is there that has not taken it yet."]),
        ({}, ["does not say"]),
        ({"workers": "many", "jobs": None}, ["does not say"]),
        ({"workers": {"idle": "x"}, "jobs": {"inQueue": None}}, ["no workers"]),
    ],
    ids=str,
)
def test_health_says_why_a_job_waits(answer: dict[str, Any], said: list[str]) -> None:
    assert all(words in why(answer) for words in said)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job has waited long enough when it is first asked about."""
    monkeypatch.setattr(waiting, "AFTER", 0.0)


@pytest.fixture
def told() -> list[str]:
    return []


def endpoint(states: Iterator[Any], *, runsync: Callable[[], Answer] | None = None) -> Callable[[Request], Answer]:
    """Answer ``/run`` and what is asked about its job with ``states``, and ``/health`` with dead workers."""

    def answer(request: Request) -> Answer:
        if request.path.endswith("/health"):
            return Answer(200, json.dumps(health(unhealthy=2)).encode())
        if request.path.endswith("/runsync") and runsync:
            return runsync()
        state = {"status": "IN_QUEUE"} if request.path.endswith("/run") else next(states)
        return Answer(200, json.dumps({"id": "a", "stream": [], **state}).encode())

    return answer


def run(address: str, told: list[str], operation: str = "run") -> Any:
    async def scenario() -> Any:
        async with Client("local", api_key="k", base_url=address, told=told.append) as caller:
            return await getattr(caller, operation)(JOB)

    return asyncio.run(scenario())


@pytest.mark.usefixtures("at_once")
def test_it_is_told_once_and_again_after_a_minute(monkeypatch: pytest.MonkeyPatch, told: list[str]) -> None:
    queued = [{"status": "IN_QUEUE"}] * 3
    with serve_http(endpoint(iter([*queued, DONE, DONE]))) as address:
        run(address, told)
    assert len(told) == 1
    assert "2 workers died at the start" in told[0]
    monkeypatch.setattr(waiting, "AGAIN", 0.0)
    with serve_http(endpoint(iter([*queued, DONE, DONE]))) as address:
        run(address, told)
    assert len(told) == 4


def test_nothing_is_told_of_a_job_that_has_not_waited_long(told: list[str]) -> None:
    with serve_http(endpoint(iter([{"status": "IN_QUEUE"}, {"status": "IN_QUEUE"}, DONE, DONE]))) as address:
        run(address, told)
    assert told == []


@pytest.mark.usefixtures("at_once")
def test_a_job_whose_worker_is_gone_says_so(told: list[str]) -> None:
    states = [{"status": "IN_PROGRESS"}, {"status": "IN_QUEUE"}, DONE, DONE]
    with serve_http(endpoint(iter(states))) as address:
        run(address, told)
    assert "The worker that had it is gone." in told[0]


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("state", ["TIMED_OUT", "FAILED", "CANCELLED"])
def test_the_error_of_a_job_that_has_waited_says_why(told: list[str], state: str) -> None:
    states = [{"status": "IN_QUEUE"}, {"status": state}, {"status": state}]
    with serve_http(endpoint(iter(states))) as address, pytest.raises(JobFailed) as failed:
        run(address, told)
    assert failed.value.__notes__ == told


@pytest.mark.usefixtures("at_once")
def test_the_error_of_a_job_that_has_run_does_not(told: list[str]) -> None:
    states = [{"status": "IN_QUEUE"}, {"status": "IN_PROGRESS"}, {"status": "FAILED"}, {"status": "FAILED"}]
    with serve_http(endpoint(iter(states))) as address, pytest.raises(JobFailed) as failed:
        run(address, told)
    assert not hasattr(failed.value, "__notes__")


@pytest.mark.usefixtures("at_once")
def test_an_endpoint_that_does_not_say_is_no_fault(monkeypatch: pytest.MonkeyPatch, told: list[str]) -> None:
    monkeypatch.setattr(http, "ATTEMPTS", 1)
    states = endpoint(iter([{"status": "IN_QUEUE"}, DONE, DONE]))
    with serve_http(lambda asked: Answer(500) if asked.path.endswith("/health") else states(asked)) as address:
        run(address, told)
    assert "does not say" in told[0]


@pytest.mark.usefixtures("at_once")
def test_runsync_tells_while_it_waits_for_its_answer(told: list[str]) -> None:
    def held() -> Answer:
        while not told:
            time.sleep(0.01)
        return Answer(200, json.dumps(DONE).encode())

    with serve_http(endpoint(iter(()), runsync=held)) as address:
        run(address, told, "runsync")
    assert "2 workers died at the start" in told[0]


@pytest.mark.usefixtures("at_once")
def test_runsync_whose_answer_does_not_come_names_run_and_says_why(told: list[str]) -> None:
    def held() -> Answer:
        while not told:
            time.sleep(0.01)
        return Answer(524)

    with serve_http(endpoint(iter(()), runsync=held)) as address, pytest.raises(JobUnknown, match="use run") as unknown:
        run(address, told, "runsync")
    assert unknown.value.__notes__ == told


@pytest.mark.usefixtures("at_once")
def test_the_command_tells_it_on_standard_error_and_in_its_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "job.json"
    file.write_bytes(job_of(1))
    states = [{"status": "IN_QUEUE"}, {"status": "TIMED_OUT"}, {"status": "TIMED_OUT"}]
    with serve_http(endpoint(iter(states))) as address, pytest.raises(SystemExit) as ended:
        for name, value in environment(address).items():
            monkeypatch.setenv(name, value)
        command.main(["run", str(file)])
    assert ended.value.code == 2
    told, error = capsys.readouterr().err.splitlines()
    assert told.endswith("2 workers died at the start: the log, in the console, has the reason.")
    assert error == f"Job a TIMED_OUT: the platform gave no reason. {told}"
