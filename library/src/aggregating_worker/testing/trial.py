"""A project's own job, run in each way, and a worker around whose task faults are planted: fixtures of the promises."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest

from aggregating_worker.client.envelopes import flatten, is_envelope, is_parts
from aggregating_worker.local.server import LocalEndpoint
from aggregating_worker.log import for_people
from aggregating_worker.sentence import counted, reason
from aggregating_worker.testing.caller import RUNNING, Caller, Serve, off_runpod
from aggregating_worker.testing.faulty import Faulty
from aggregating_worker.testing.planted import FAULTS, Faults, folder_with_faults

PATIENCE = 100.0
"""Seconds for a job, for the start of a worker, and for a local test."""
SLOW = 0.5
"""Seconds of an item from which a task is slow: twenty jobs of it would take too long."""
SLOW_START = 20.0
"""Seconds of a start from which no further worker is started: each promise about faults needs one or two."""
LOOKAHEAD = 4
"""Items that the worker with planted faults begins before it has streamed the first."""

LOCAL_TEST = """
import json, runpy, sys
from aggregating_worker import before_sdk
before_sdk.prepare()
from runpod.serverless.modules import rp_local
run_job = rp_local.run_job
async def noted(handler, job):
    result = await run_job(handler, job)
    with open(sys.argv.pop(), "w") as file:
        json.dump(result, file)
    return result
rp_local.run_job = noted
runpy.run_path("handler.py", run_name="__main__")
"""
"""The SDK's local test, whose result is also written to a file: the SDK prints it, shortened."""

Envelope = dict[str, Any]


class Runs(NamedTuple):
    """What came of ``test_input.json``, in each way of asking; ``size`` is bytes of the aggregate."""

    local: list[Envelope]
    run: list[Envelope]
    stream: list[Envelope]
    runsync: list[Envelope]
    size: int
    seconds_to_start: float
    seconds_per_item: float

    def skip_if_slow_to_start(self) -> None:
        """Skip the test where it would take too long to start another worker."""
        if self.seconds_to_start > SLOW_START:
            pytest.skip(f"A worker takes {self.seconds_to_start:.0f} s to start, and this needs another.")

    def skip_if_slow(self) -> None:
        """Skip the test where many items would take too long."""
        if self.seconds_per_item > SLOW:
            pytest.skip(f"The task takes {self.seconds_per_item:.1f} s an item, and this needs many.")


def fail(sentence: str) -> NoReturn:
    """Say what is wrong, without a traceback: it would be of this file, and what is wrong is in the task."""
    pytest.fail(sentence, pytrace=False)


@pytest.fixture(scope="module")
def project(pytestconfig: pytest.Config) -> Path:
    """Return the folder of the worker."""
    return pytestconfig.rootpath


@pytest.fixture(scope="module")
def test_input(project: Path) -> dict[str, Any]:
    """Return the job in ``test_input.json``."""
    try:
        job = json.loads((project / "test_input.json").read_text(encoding="utf-8"))
        return {"input": job["input"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        fail(f'test_input.json is not a job, {{"input": {{"items": […]}}}}: {type(error).__name__}: {error}')


def ended(caller: Caller, job_id: str) -> dict[str, Any]:
    """Return a job's final state. Fails if it has none in time, or if the last worker has ended before."""
    deadline = time.monotonic() + PATIENCE
    while (state := caller.status(job_id))["status"] in RUNNING:
        if not caller.endpoint.workers.alive:
            fail(f"The worker has ended. Its log:\n{for_people(caller.log.read_text())}")
        if time.monotonic() > deadline:
            fail(f"The job has not ended in {PATIENCE:.0f} s: ITEM_TIMEOUT bounds an item.")
        time.sleep(0.02)
    return state


def finished(caller: Caller, job_id: str) -> dict[str, Any]:
    """Return the final state of a job that is ``COMPLETED``. Fails if it is not."""
    return completed(ended(caller, job_id))


def completed(state: dict[str, Any]) -> dict[str, Any]:
    """Return ``state`` if it is ``COMPLETED``; fail with its error if it is not."""
    if state["status"] != "COMPLETED":
        fail(f"The job ended {state['status']}: {state.get('error')}")
    return state


def done(caller: Caller, job_id: str) -> dict[str, Any]:
    """Return what ``finished`` does; skip the test if the task refuses a job of more items than its own."""
    state = ended(caller, job_id)
    if state["status"] == "FAILED":
        pytest.skip(f"The job of this test is refused: {state['error']}")
    return completed(state)


def envelopes(state: dict[str, Any]) -> list[Envelope]:
    """Return the envelopes of a job that is done."""
    made = [*flatten(state["output"])] if isinstance(state["output"], list) else [state["output"]]
    if not all(map(is_envelope, made)):
        fail(
            "test_input.json must be in list form for these tests: an older request, for single, is a test of your own."
        )
    return made


def check_items(where: str, made: list[Envelope], log: str = "") -> None:
    """Fail if an item has failed, with each that did, and why."""
    failed = [each for each in made if not each["success"]]
    if failed:
        why = [(each["index"], reason(each["failure"]["type"], each["failure"]["message"])) for each in failed]
        reasons = "".join(f"\n  item {index}: {text}" for index, text in why)
        fail(f"{where}: {len(failed)} of {counted(len(made), 'item')} of test_input.json failed.{reasons}{log}")


def run_local_test(project: Path, env: Mapping[str, str], folder: Path) -> list[Envelope]:
    """Return what ``python handler.py`` makes of ``test_input.json``."""
    result = folder / "result.json"
    done = subprocess.run(
        [sys.executable, "-c", LOCAL_TEST, str(result)],
        cwd=project,
        env=off_runpod(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    if not result.exists():
        fail(f"python handler.py made no result, and ended with status {done.returncode}:\n{done.stdout}")
    answer = json.loads(result.read_text())
    if "error" in answer:
        fail(f"python handler.py: {answer['error']}")
    made = envelopes(answer)
    check_items("python handler.py", made)
    assert done.returncode == 0, done.stdout
    return made


@pytest.fixture(scope="module")
def real(serve: Serve) -> Caller:
    """Serve the project as it is."""
    return serve()


@pytest.fixture(scope="module")
def tried(
    real: Caller,
    project: Path,
    test_input: dict[str, Any],
    worker_env: Mapping[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Runs | str:
    """Run ``test_input.json`` in each way; return what came of it, or a text that says why that is nothing to go on."""
    try:
        return _run(real, project, test_input, worker_env, tmp_path_factory.mktemp("local"))
    except pytest.fail.Exception as failed:
        return str(failed)


@pytest.fixture(scope="module")
def runs(tried: Runs | str) -> Runs:
    """Return what came of ``test_input.json``. Where it has failed, one test says why, and the others are skipped."""
    if isinstance(tried, str):
        pytest.skip(f"test_input.json does not run: {tried.splitlines()[0]}")
    return tried


def _run(real: Caller, project: Path, test_input: dict[str, Any], worker_env: Mapping[str, str], folder: Path) -> Runs:
    """Run ``test_input.json`` in each way. Fails if the worker does not start, or an item fails."""
    began = time.monotonic()
    while not real.endpoint.workers.states()["ready"]:
        if not real.endpoint.workers.alive:
            fail(f"The worker has ended at its start. Its log:\n{for_people(real.log.read_text())}")
        if time.monotonic() - began > PATIENCE:
            fail(f"load() has not ended in {PATIENCE:.0f} s: a fixture worker_env may name a smaller model.")
        time.sleep(0.02)
    started = time.monotonic() - began
    with ThreadPoolExecutor(1) as beside:
        local = beside.submit(run_local_test, project, worker_env, folder)
        job_id = real.submit(test_input)
        streamed = [each for each in flatten([*real.stream(job_id)]) if not is_parts(each)]
        state = finished(real, job_id)
        run = envelopes(state)
        check_items("/run", run, f"\nThe worker's log:\n{for_people(real.log.read_text())}")
        again = real.post("/runsync?wait=30000", json=test_input).json()
        runsync = envelopes(finished(real, again["id"]))
        check_items("/runsync", runsync)
        size = len(json.dumps(state["output"], ensure_ascii=False).encode())
        return Runs(local.result(), run, streamed, runsync, size, started, state["executionTime"] / 1000 / len(run))


@pytest.fixture(scope="module")
def job_of(test_input: dict[str, Any], runs: Runs) -> Callable[..., dict[str, Any]]:
    """Make the job of ``test_input.json`` with so many items, its own again and again, and others before the last."""
    given = test_input["input"]
    lists = [name for name, value in given.items() if isinstance(value, list) and len(value) == len(runs.run)]
    if "items" not in lists and len(lists) != 1:
        pytest.skip("test_input.json has no list that is surely the items.")
    name = "items" if "items" in lists else lists[0]

    def make(count: int, *others: Any, **beside: Any) -> dict[str, Any]:
        items = [*islice(cycle(given[name]), count)]
        return {"input": {**given, name: [*items[:-1], *others, *items[-1:]], **beside}}

    return make


class Planted(NamedTuple):
    """A worker with faults planted around its task; what lies between it and the endpoint; who calls it."""

    caller: Caller
    faults: Faults
    platform: Faulty

    def begin(self, job: dict[str, Any], held: int) -> str:
        """Submit ``job``, and return its id once the item that is ``held`` is under way."""
        self.faults.hold(held)
        job_id = self.caller.submit(job)
        deadline = time.monotonic() + PATIENCE
        while held not in self.faults.called():
            if self.caller.status(job_id)["status"] not in RUNNING:
                done(self.caller, job_id)
                fail("The job has ended without the item that was to be held: the fault was not planted.")
            if not self.caller.endpoint.workers.alive or time.monotonic() > deadline:
                fail(f"An item was not begun. The worker's log:\n{for_people(self.caller.log.read_text())}")
            time.sleep(0.01)
        return job_id


@pytest.fixture(scope="module")
def planted(
    runs: Runs,
    project: Path,
    worker_env: Mapping[str, str],
    make_log: Callable[[], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Planted]:
    """Serve the project with faults planted around its task; its worker starts anew when it has ended."""
    runs.skip_if_slow_to_start()
    if not (project / "task.py").is_file():
        pytest.skip("There is no task.py here around which a fault could be planted.")
    folder = tmp_path_factory.mktemp("planted")
    log = make_log()
    faults = folder / "faults"
    faults.mkdir()
    env = {**worker_env, FAULTS: str(faults), "ITEM_TIMEOUT": "0", "LOOKAHEAD": str(LOOKAHEAD)}
    with Faulty() as platform, log.open("wb") as output:
        worker = folder_with_faults(project, folder / "worker")
        with (
            LocalEndpoint(platform.command, cwd=worker, env=env, log=output) as endpoint,
            Caller(endpoint, log) as caller,
        ):
            platform.endpoint_url = endpoint.url
            yield Planted(caller, Faults(faults), platform)
