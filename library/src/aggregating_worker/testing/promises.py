"""What a worker promises, tried on its owner's ``task.py`` and ``test_input.json``, through the SDK's production loop.

A project takes them into a test file of its own: ``from aggregating_worker.testing.promises import *``. Each runs real
workers behind a local endpoint; where a fault is needed, it is planted around the task, or between worker and endpoint.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from aggregating_worker.local.worker_api import MAX_CHUNK
from aggregating_worker.testing.caller import Caller, Serve, off_runpod
from aggregating_worker.testing.trial import *  # noqa: F403  # the fixtures
from aggregating_worker.testing.trial import (
    LOOKAHEAD,
    PATIENCE,
    SLOW,
    Planted,
    Runs,
    check_items,
    done,
    envelopes,
    fail,
    finished,
)

JobOf = Callable[..., dict[str, Any]]

pytestmark = [pytest.mark.promise, pytest.mark.timeout(600)]  # each wait in them is bounded by itself

OUTAGE = 2.0
"""Seconds for which the platform is gone."""
TRIES = 8
"""Runs after which what is the same in all of them is no chance."""
SHORTEST = 100
"""Bytes of the shortest failure at most, with what is around it."""
EVENTS = 1_000_000
"""The indices of one job with planted faults begin so far from those of another."""

IMPORT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import task
"""
"""Imports the task as if some packages were not installed."""


def alike(one: Any, other: Any) -> bool:
    """Whether two results have in common what does not differ by chance: the names and the kinds in them."""
    if one is None or other is None:
        return True
    match one, other:
        case dict(), dict():
            return one.keys() == other.keys() and all(alike(one[name], other[name]) for name in one)
        case (int() | float(), int() | float()) if bool not in (type(one), type(other)):
            return True
    return type(one) is type(other)


def test_every_item_of_the_test_input_succeeds_in_the_local_test_and_in_production(tried: Runs | str) -> None:
    """That is what the file is for; ``make demo``, the image and the Hub run it, too."""
    if isinstance(tried, str):
        fail(tried)
    assert [each["index"] for each in tried.run] == [*range(len(tried.run))]


def test_the_local_test_and_run_and_stream_and_runsync_agree(
    runs: Runs, real: Caller, test_input: dict[str, Any]
) -> None:
    """The same job's stream and aggregate are equal; other jobs are equal where the task makes the same thing twice."""
    missing = [each for each in runs.run if each not in runs.stream]
    assert [each for each in runs.run if each not in missing] == runs.stream
    assert all(len(json.dumps(each)) >= MAX_CHUNK for each in missing), "/stream lacks what would have fitted"
    assert len(runs.local) == len(runs.run) == len(runs.runsync)
    several = [runs.run, runs.runsync]
    while runs.local not in several and len(several) < TRIES and runs.seconds_per_item < SLOW:
        time.sleep(0.3)  # a result may have the second in it
        several.append(envelopes(finished(real, real.submit(test_input))))
    for local, *production in zip(runs.local, *several, strict=True):
        if all(each == production[0] for each in production):
            assert local == production[0]
        assert all(alike(local, each) for each in production)


def test_an_item_that_fails_costs_no_other_its_result(planted: Planted, job_of: JobOf) -> None:
    first = 1 * EVENTS
    planted.faults.fail(first + 1)
    job_id = planted.caller.submit(job_of(4, first_index=first))
    made = envelopes(done(planted.caller, job_id))
    assert [(each["index"] - first, each["success"]) for each in made] == [(0, True), (1, False), (2, True), (3, True)]
    assert made[1]["failure"] == {"type": "PlantedError", "message": "planted"}


def test_an_item_that_input_does_not_accept_costs_no_other_its_result(planted: Planted, job_of: JobOf) -> None:
    """Whether it accepts one of these depends on the task; in any case they cost the others nothing."""
    first = 7 * EVENTS
    others: tuple[Any, ...] = (None, {"no": "item"}, [[]], "")
    made = envelopes(done(planted.caller, planted.caller.submit(job_of(2, *others, first_index=first))))
    assert [each["index"] - first for each in made] == [*range(len(others) + 2)]
    assert made[0]["success"] and made[-1]["success"]


def test_an_item_that_ends_its_process_costs_no_other_its_result(planted: Planted, job_of: JobOf) -> None:
    first = 6 * EVENTS
    planted.faults.end_process(first + 1)
    made = envelopes(done(planted.caller, planted.caller.submit(job_of(4, first_index=first))))
    assert [(each["index"] - first, each["success"]) for each in made] == [(0, True), (1, False), (2, True), (3, True)]
    assert made[1]["failure"]["type"] == "ProcessDied"


def test_a_cancelled_job_stops_and_the_next_one_is_served(planted: Planted, job_of: JobOf) -> None:
    first = 2 * EVENTS
    job_id = planted.begin(job_of(4 * LOOKAHEAD, first_index=first), first)
    assert planted.caller.post(f"/cancel/{job_id}").json()["status"] == "CANCELLED"
    planted.faults.release(first)
    check_items("The next job", envelopes(done(planted.caller, planted.caller.submit(job_of(1)))))
    assert planted.caller.status(job_id)["status"] == "CANCELLED"
    assert len([index for index in planted.faults.called() if first <= index < first + EVENTS]) <= LOOKAHEAD


def test_two_seconds_without_the_platform_lose_nothing(planted: Planted, job_of: JobOf) -> None:
    first = 3 * EVENTS
    job_id = planted.begin(job_of(3, first_index=first), first + 1)
    planted.platform.go_away()
    planted.faults.release(first + 1)
    time.sleep(OUTAGE)
    planted.platform.come_back()
    made = envelopes(done(planted.caller, job_id))
    assert [(each["index"] - first, each["success"]) for each in made] == [(0, True), (1, True), (2, True)]


def test_a_job_whose_worker_is_killed_is_done_by_another(planted: Planted, job_of: JobOf) -> None:
    first = 4 * EVENTS
    job_id = planted.begin(job_of(2, first_index=first), first)
    [worker] = planted.caller.endpoint.workers.running
    os.kill(worker.process.pid, signal.SIGKILL)
    planted.faults.release(first)
    state = done(planted.caller, job_id)
    assert [each["success"] for each in envelopes(state)] == [True, True]
    assert (state["retries"], state["workerId"] != worker.id) == (1, True)


def test_a_worker_that_is_told_to_stop_delivers_its_job_and_exits_0(planted: Planted, job_of: JobOf) -> None:
    first = 5 * EVENTS
    job_id = planted.begin(job_of(2, first_index=first), first)
    [worker] = planted.caller.endpoint.workers.running
    worker.process.send_signal(signal.SIGTERM)
    planted.faults.release(first)
    assert [each["success"] for each in envelopes(done(planted.caller, job_id))] == [True, True]
    assert worker.exited.result(PATIENCE) == 0


def test_a_small_response_accounts_for_every_item(runs: Runs, serve: Serve, job_of: JobOf) -> None:
    """What does not fit is a failure ``OutputTooLarge`` in its place, and the final body stays within its limit."""
    runs.skip_if_slow_to_start()
    mean = runs.size / len(runs.run)
    if mean < SHORTEST:
        pytest.skip(f"The results take {mean:.0f} bytes each: a failure in place of one would not be shorter.")
    count = max(len(runs.run), int(4_000 / mean) + 1)
    if count > len(runs.run):
        runs.skip_if_slow()
    limit = max(1_000, int(count * (mean + SHORTEST) / 2))  # for all the failures, and not for all the results
    caller = serve(MAX_OUTPUT_BYTES=str(limit))
    state = done(caller, caller.submit(job_of(count)))
    made = envelopes(state)
    assert [each["index"] for each in made] == [*range(count)]
    assert {each["failure"]["type"] for each in made if not each["success"]} == {"OutputTooLarge"}
    assert len(json.dumps({"output": state["output"]}, ensure_ascii=False).encode()) <= limit


@pytest.mark.parametrize("wrong", ["no items", "no object"])
def test_a_request_that_cannot_be_used_is_refused_in_a_sentence(real: Caller, job_of: JobOf, wrong: str) -> None:
    job = job_of(0) if wrong == "no items" else {"input": [1]}
    state = real.post("/runsync?wait=30000", json=job).json()
    assert state["status"] == "FAILED"
    assert "Traceback" not in state["error"]
    assert len(state["error"].splitlines()) == 1


def test_twenty_jobs_of_one_item_follow_one_another_without_a_rest(runs: Runs, real: Caller, job_of: JobOf) -> None:
    """The SDK's own loop rests for a second between two jobs, which would take these twenty seconds."""
    runs.skip_if_slow()
    deadline = time.monotonic() + 19 + 20 * runs.seconds_per_item
    for job_id in [real.submit(job_of(1)) for _ in range(20)]:
        check_items("A job of one item", envelopes(done(real, job_id)))
    assert time.monotonic() < deadline


def names(lock: Path) -> set[str]:
    """Return the packages in a lock file, as their names are compared."""
    lines = lock.read_text(encoding="utf-8").splitlines() if lock.exists() else []
    return {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}


def test_the_task_needs_no_package_that_the_image_lacks(project: Path, worker_env: Mapping[str, str]) -> None:
    """The tests' own packages are here and not in the image: what is locked for them alone counts as absent."""
    image = names(project / "requirements.txt")
    if not image:
        pytest.skip("There is no requirements.txt here, which names what the image has.")
    others = set().union(*map(names, project.glob("requirements-*.txt"))) - image
    absent = [
        module
        for module, packages in packages_distributions().items()
        if all(package.lower().replace("_", "-").replace(".", "-") in others for package in packages)
    ]
    line = [sys.executable, "-c", IMPORT, *absent]
    done = subprocess.run(
        line, cwd=project, env=off_runpod(**worker_env), capture_output=True, text=True, timeout=PATIENCE
    )
    if done.returncode:
        why = done.stderr.splitlines()[-1]
        fail(f"task.py cannot be imported in the image. {why}: add it to pyproject.toml, then make lock.")


def test_the_hub_tests_the_job_in_test_input(project: Path, test_input: dict[str, Any]) -> None:
    file = project / ".runpod" / "tests.json"
    if not file.exists():
        pytest.skip("There is no .runpod/tests.json here.")
    if [test["input"] for test in json.loads(file.read_text(encoding="utf-8"))["tests"]] != [test_input["input"]]:
        fail(".runpod/tests.json has another job than test_input.json: make hub writes it.")
