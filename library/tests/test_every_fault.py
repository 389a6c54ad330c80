"""One item of every kind of fault among a hundred good ones costs no other item its result, however the job is sent."""

import ast
import json
import subprocess
import sys
from typing import Any

import pytest

from tests.calling import client, lines
from tests.conftest import MakeWorker, Serve, off_runpod
from tests.tasks.every_fault import FAULTS, INVALID

GOOD = 100
OBEYED = "\x1b\x9b\u202e"


def mixed(count: int = GOOD) -> tuple[list[Any], list[dict[str, Any]]]:
    """Return the items, ``count`` good ones among them, and the outcome of each."""
    good: list[tuple[Any, dict[str, Any]]] = [
        ({"name": f"item {number}"}, {"success": True, "result": f"item {number}"}) for number in range(count)
    ]
    bad: list[tuple[Any, dict[str, Any]]] = [({"name": name}, failure(FAULTS[name][1])) for name in FAULTS]
    bad += [(item, failure({"type": "InvalidItem", "message": why})) for item, why in INVALID]
    for number, each in enumerate(bad):
        good.insert(number * 6, each)
    return [item for item, _ in good], [{"index": index, **outcome} for index, (_, outcome) in enumerate(good)]


def failure(given: dict[str, Any]) -> dict[str, Any]:
    return {"success": False, "failure": given}


@pytest.mark.parametrize("task", ["every_fault", "every_fault_by_sdk"])
def test_in_production_with_the_workers_sender_and_with_the_sdks(serve: Serve, task: str) -> None:
    caller = serve(task)
    items, outcomes = mixed()
    job_id = caller.run(items)
    streamed = list(caller.stream(job_id))
    state = caller.status(job_id)
    assert state["status"] == "COMPLETED", state
    assert streamed == state["output"] == outcomes
    assert ("sent by the SDK" in caller.log.read_text()) == (task == "every_fault_by_sdk")


def test_in_the_local_test(make_worker: MakeWorker) -> None:
    folder = make_worker("every_fault")

    def run(items: list[Any]) -> "subprocess.CompletedProcess[str]":
        (folder / "test_input.json").write_text(json.dumps({"input": {"items": items}}))
        command = [sys.executable, "handler.py"]
        return subprocess.run(command, cwd=folder, env=off_runpod(), capture_output=True, text=True, timeout=60)

    items, _ = mixed()
    done = run(items)
    assert done.returncode == 1
    assert done.stderr == f"{len(items) - GOOD} of {len(items)} items failed. Item 0: ValueError: no\n"
    items, outcomes = mixed(3)  # the SDK cuts what it prints
    printed = run(items).stdout.partition("Job result: ")[2].splitlines()[0]
    assert ast.literal_eval(printed)["output"] == outcomes


@pytest.mark.parametrize("bad", ["escape", "raises"])
def test_nothing_that_a_terminal_obeys_is_printed_by_the_local_test(make_worker: MakeWorker, bad: str) -> None:
    job = json.dumps({"input": {"items": [{"name": bad}, {"\x1b[2J\x9b\u202e": 1}]}})
    done = subprocess.run(
        [sys.executable, "handler.py", "--test_input", job],
        cwd=make_worker("every_fault"),
        env=off_runpod(),
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert done.returncode == 1
    assert not {*OBEYED} & {*(done.stdout + done.stderr)}
    assert ("\\u001b[2J\\u009b\\u202e" in done.stderr) == (bad == "escape")


@pytest.mark.parametrize("operation", ["run", "stream"])
def test_nor_by_the_client_which_prints_the_same_json(serve: Serve, operation: str) -> None:
    caller = serve("every_fault")
    done = client(caller.endpoint.base_url, operation, "-", given=b'{"input": {"items": [{"name": "escape"}]}}')
    assert lines(done.stdout) == [{"index": 0, "success": False, "failure": FAULTS["escape"][1]}]
    assert not {*OBEYED} & {*done.stdout.decode()}
