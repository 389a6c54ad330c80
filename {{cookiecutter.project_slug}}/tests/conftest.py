"""Real workers in their production loop, and a caller."""

import worker.intake.before_sdk  # noqa: F401  # isort: skip  # before the SDK

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from endpoint.client.envelopes import flatten
from endpoint.demo import Failed, check_items
from endpoint.local import LocalEndpoint

PROJECT = Path(__file__).parents[1]
HALF_WRITTEN = shutil.ignore_patterns("*.pyc.*")
"""What another process may be about to rename."""
PATIENCE = 100.0
"""Seconds for ``test_input.json``; then pytest's own limit would end the test, with the stacks of all threads."""


class Caller:
    """Calls ``endpoint``, whose workers write to ``log``."""

    def __init__(self, endpoint: LocalEndpoint, log: Path) -> None:
        self.endpoint = endpoint
        self.log = log
        self.http = httpx.Client(base_url=endpoint.url, headers={"Authorization": "Bearer test"}, timeout=60)
        self.get, self.post = self.http.get, self.http.post

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def run(self, items: list[Any], **options: Any) -> str:
        job_id: str = self.post("/run", json=self._job(items, options)).raise_for_status().json()["id"]
        return job_id

    def runsync(self, items: list[Any], **options: Any) -> dict[str, Any]:
        state: dict[str, Any] = self.post("/runsync", json=self._job(items, options)).json()
        return state

    def send_test_input(self) -> list[Any]:
        """Send ``test_input.json``; return its envelopes in the order of the items. Fails if an item failed."""
        [worker] = self.endpoint.workers.running
        answer = self.post("/run", content=(PROJECT / "test_input.json").read_bytes())
        if answer.is_error:
            pytest.fail(f"test_input.json is refused: {answer.json()['error']}", pytrace=False)
        job_id, deadline = answer.json()["id"], time.monotonic() + PATIENCE
        while (state := self.status(job_id))["status"] in ("IN_QUEUE", "IN_PROGRESS"):
            if worker.exited.done():
                pytest.fail(f"The worker has ended. Its log:\n{self.log.read_text()}", pytrace=False)
            if time.monotonic() > deadline:
                pytest.fail(
                    f"test_input.json has not ended in {PATIENCE:.0f} s: ITEM_TIMEOUT bounds an item.", pytrace=False
                )
            time.sleep(0.02)
        if state["status"] != "COMPLETED":
            pytest.fail(f"The job ended {state['status']}: {state.get('error')}", pytrace=False)
        envelopes = [*flatten(state["output"])]
        try:
            check_items("test_input.json", envelopes)
        except Failed as failed:
            why = str(failed)
        else:
            return envelopes
        pytest.fail(f"{why}\nThe worker's log:\n{self.log.read_text()}", pytrace=False)

    def take(self) -> dict[str, Any]:
        """Take a job as the endpoint's worker would."""
        job: dict[str, Any] = self.as_worker("GET", "job-take").json()
        return job

    def chunk(self, job_id: str, output: Any) -> httpx.Response:
        """Post a chunk as the worker would."""
        return self.as_worker("POST", "job-stream", job_id, json.dumps({"output": output}))

    def done(self, job_id: str, body: Any) -> httpx.Response:
        """Post a result as the worker would."""
        return self.as_worker("POST", "job-done", job_id, json.dumps(body))

    def as_worker(self, method: str, route: str, job: str = "", content: str = "", **params: Any) -> httpx.Response:
        """Call a route of the worker protocol as the endpoint's first worker."""
        worker = self.endpoint.workers.running[0]
        path = "/".join(filter(None, ("", route, worker.id, job)))
        headers = {"Authorization": worker.secret}
        return self.http.request(method, path, content=content, params={"gpu": "none", **params}, headers=headers)

    @staticmethod
    def _job(items: list[Any], options: dict[str, Any]) -> dict[str, Any]:
        """Return a request; a job that no worker answers fails in 30 s instead of the platform's 10 minutes."""
        return {"input": {"items": items, **options}, "policy": {"executionTimeout": 30_000}}

    def stream(self, job_id: str) -> Iterator[Any]:
        while True:
            state = self.get(f"/stream/{job_id}").raise_for_status().json()
            yield from (chunk["output"] for chunk in state["stream"])
            if state["status"] not in ("IN_QUEUE", "IN_PROGRESS") and not state["stream"]:
                return

    def wait_for_log(self, job_id: str, words: str) -> None:
        """Return once a worker has written ``words`` about a job."""
        deadline = time.monotonic() + 20
        while not any(job_id in line and words in line for line in self.log.read_text().splitlines()):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def status(self, job_id: str) -> dict[str, Any]:
        state: dict[str, Any] = self.get(f"/status/{job_id}").raise_for_status().json()
        return state


def off_runpod(**env: str) -> dict[str, str]:
    """Return this process's environment without what makes the SDK think that it is on Runpod, and with ``env``."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RUNPOD_")}
    return {**bare, "RUNPOD_LOG_LEVEL": "INFO", **env}


MakeWorker = Callable[[str], Path]
Serve = Callable[..., Caller]


@pytest.fixture(scope="session")
def make_worker(tmp_path_factory: pytest.TempPathFactory) -> MakeWorker:
    """Lay out this worker in a folder of its own, around one of ``tests/machinery/tasks``."""

    def make(task: str) -> Path:
        folder = tmp_path_factory.mktemp("worker")
        shutil.copytree(PROJECT / "worker", folder / "worker", ignore=HALF_WRITTEN)
        shutil.copy(PROJECT / "handler.py", folder)
        shutil.copy(PROJECT / "test_input.json", folder)
        shutil.copytree(PROJECT / "tests" / "machinery" / "tasks", folder / "tests" / "machinery" / "tasks")
        shutil.copy(PROJECT / "tests" / "machinery" / "tasks" / f"{task}.py", folder / "task.py")
        return folder

    return make


@pytest.fixture(scope="module")
def serve(make_worker: MakeWorker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Serve an endpoint whose workers run this project under the given settings, until the module is done.

    Or one of ``tests/machinery/tasks`` in place of ``task.py``.
    """
    with ExitStack() as stack:

        def start(task: str = "", workers: int = 1, **env: str) -> Caller:
            log = tmp_path_factory.mktemp("log") / "worker.log"
            output = stack.enter_context(log.open("wb"))
            folder = make_worker(task) if task else PROJECT
            endpoint = LocalEndpoint(cwd=folder, workers=workers, env=env, log=output)
            return stack.enter_context(Caller(stack.enter_context(endpoint), log))

        yield start


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let what the test starts take SIGINT, which is ignored under ``nohup make test &``: a child inherits that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Path]:
    """Keeps an item busy until the test writes to it, or is over."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    yield path
    os.close(os.open(path, os.O_RDWR))


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
