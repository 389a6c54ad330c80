"""``single``: who sends an older worker's request gets the older answer, and who sends a list gets envelopes."""

import asyncio
import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from aggregating_worker.refusal import Refused
from tests.calling import client, lines
from tests.conftest import Caller, MakeWorker, Serve, off_runpod
from tests.engine import runner
from tests.tasks import parts, single

OLD = {"prompt": "a fox", "steps": 7, "seed": 3}


@pytest.fixture(scope="module")
def caller(serve: Serve) -> Caller:
    return serve("single", MAX_OUTPUT_BYTES="5000")


def answer(caller: Caller, request: Any) -> dict[str, Any]:
    """Return a job's final state, which is the same for /run and /runsync, and what was on its stream."""
    job_id = caller.submit({"input": request})
    streamed = list(caller.stream(job_id))
    state = caller.status(job_id)
    again = caller.post("/runsync", json={"input": request}).json()
    kept: dict[str, Any] = {name: state[name] for name in ("status", "output", "error") if name in state}
    assert {name: again[name] for name in kept} == kept
    return {**kept, "stream": streamed}


def test_every_field_of_an_old_request_counts_and_the_answer_is_the_bare_result(caller: Caller) -> None:
    assert answer(caller, OLD) == {"status": "COMPLETED", "output": OLD, "stream": [OLD]}


def test_a_list_is_answered_as_ever(caller: Caller) -> None:
    envelope = {"index": 0, "success": True, "result": {"prompt": "a fox", "seed": 0, "steps": 20}}
    found = answer(caller, {"items": [{"prompt": "a fox"}]})
    assert found == {"status": "COMPLETED", "output": [envelope], "stream": [envelope]}


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"prompt": "fail it is night"}, "it is night"),
        ({"prompt": "fail"}, "ValueError"),
        ({"prompt": "error"}, '{"code": 7}'),
        ({"prompt": 3}, "prompt should be a valid string"),
        ({"prompt": "a", "steps": 0}, "The job's input cannot be used: steps should be greater than or equal to 1."),
        ({"prompt": "a", "stepz": 1}, "The job's input cannot be used: there is no field stepz."),
        ({"prompt": "large 9000"}, "The result has 9,0"),
        ({"prompts": ["a", "b"]}, "task.single must return a request with one item, not 2."),
        ({"prompts": []}, "task.single must return a request with one item, not 0."),
        ({"wrong": "value"}, "task.single must return a dict or None, not ValueError."),
        ({"wrong": "list"}, "task.single must return a dict or None, not list."),
        ({"wrong": "none"}, "No items provided"),
        ({"wrong": "key"}, "task.single must return a request with one item, not 0."),
        ({"wrong": "other"}, "The job's input cannot be used: task.single failed on it."),
    ],
)
def test_what_fails_fails_the_job_with_a_sentence(caller: Caller, request_: Any, error: str) -> None:
    found = answer(caller, request_)
    assert (found["status"], found["stream"]) == ("FAILED", [])
    assert found["error"].startswith(error)


def test_a_failure_that_asks_for_a_new_worker_gets_one(serve: Serve) -> None:
    caller = serve("single")
    [before] = caller.endpoint.workers.running
    assert caller.post("/runsync", json={"input": {"prompt": "error"}}).json()["status"] == "FAILED"
    assert caller.post("/runsync", json={"input": OLD}).json()["output"] == OLD
    assert before not in caller.endpoint.workers.running


def test_files_stay_as_they_are_in_a_list(caller: Caller) -> None:
    file = {"content_type": "image/png", "bytes": 8, "data": "iVBORw0KGgo="}
    assert answer(caller, {"prompt": "file"})["output"] == {"file": file}


@pytest.mark.parametrize("chunk_size", ["1", "8"])
def test_parts_are_bare_and_are_not_repeated_as_a_whole(serve: Serve, chunk_size: str) -> None:
    """Who puts the parts of an older worker together would have all of them twice."""
    caller = serve("single_parts", CHUNK_SIZE=chunk_size)
    assert answer(caller, {"words": ["a", "b", "c"]}) == {
        "status": "COMPLETED",
        "output": "abc",
        "stream": ["a", "b", "c"],
    }
    assert answer(caller, {"words": [[1], {"x": 2}]})["stream"] == [[1], {"x": 2}]


@pytest.mark.parametrize(
    ("given", "status", "printed"),
    [(OLD, 0, "'steps': 7"), ({"prompt": "fail no"}, 1, "no"), ({"prompt": 3}, 1, "prompt should be a valid string")],
)
def test_the_local_test_answers_in_the_same_form(
    make_worker: MakeWorker, given: Any, status: int, printed: str
) -> None:
    folder = make_worker("single")
    command = [sys.executable, "handler.py", "--test_input", json.dumps({"input": given})]
    done = subprocess.run(command, cwd=folder, env=off_runpod(), capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    assert printed in done.stdout
    assert "'index'" not in done.stdout


def test_with_the_sdks_sender_it_is_the_only_chunk(capsys: pytest.CaptureFixture[str]) -> None:
    async def chunks(request: Any) -> list[Any]:
        return [chunk async for chunk in runner(single).run({"id": "old", "input": request})]

    assert asyncio.run(chunks(OLD)) == [OLD]
    assert "list of one" in capsys.readouterr().out
    assert asyncio.run(chunks({"prompt": "fail no"})) == [{"error": "no"}]


async def asynchronous(request: dict[str, Any]) -> None:
    """It would have to be awaited in the worker's process."""


@pytest.mark.parametrize("wrong", [asynchronous, "no function"])
def test_another_kind_of_single_is_refused_at_the_start(wrong: Any) -> None:
    task = SimpleNamespace(Input=single.Input, load=parts.load, process=single.process, single=wrong)
    with pytest.raises(Refused, match=r"task\.single must be a plain function"):
        runner(task)


@pytest.mark.parametrize("operation", ["run", "runsync", "stream"])
def test_the_client_prints_the_answer_as_it_came(caller: Caller, operation: str) -> None:
    job = json.dumps({"input": OLD}).encode()
    done = client(caller.endpoint.base_url, operation, "-", given=job)
    assert (done.returncode, lines(done.stdout), done.stderr) == (0, [OLD], b"")
    failed = client(caller.endpoint.base_url, operation, "-", given=b'{"input": {"prompt": "fail at night"}}')
    assert (failed.returncode, failed.stdout) == (2, b"")
    assert b"FAILED: at night." in failed.stderr


def test_the_client_prints_bare_parts_as_they_come(serve: Serve) -> None:
    url = serve("single_parts").endpoint.base_url
    job = b'{"input": {"words": ["a", [1], {"x": 2}]}}'
    assert lines(client(url, "stream", "-", given=job).stdout) == ["a", [1], {"x": 2}]
    assert lines(client(url, "run", "-", given=job).stdout) == [["a", [1], {"x": 2}]]


def test_the_demo_shows_the_answer_as_it_came(make_worker: MakeWorker) -> None:
    folder = make_worker("single")
    (folder / "test_input.json").write_text(json.dumps({"input": OLD}))
    command = [sys.executable, "-m", "aggregating_worker", "demo"]
    done = subprocess.run(command, cwd=folder, env=off_runpod(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "GET  /stream " in done.stdout
    assert done.stdout.count('"steps": 7') == 3
    assert "in an older form" in done.stdout
