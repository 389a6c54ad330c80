"""Real workers in their production loop, and a caller."""

import json
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import settings

from aggregating_worker import before_sdk
from aggregating_worker.local import LocalEndpoint
from aggregating_worker.testing import caller as testing
from aggregating_worker.testing.caller import off_runpod

before_sdk.prepare()  # the tests import the SDK, too
settings.register_profile("any machine", deadline=None)  # none of them fails because of a time
settings.load_profile("any machine")

LIBRARY = Path(__file__).parents[1]
HANDLER = LIBRARY.parent / "{{cookiecutter.project_slug}}" / "handler.py"
"""The template's own, which has nothing of an answer in it."""
TESTS = LIBRARY / "tests"

__all__ = ["Caller", "MakeWorker", "Serve", "off_runpod"]


class Caller(testing.Caller):
    """Calls the endpoint, and stands in for its worker."""

    def take(self) -> dict[str, Any]:
        """Take a job as the endpoint's worker would."""
        job: dict[str, Any] = self.as_worker("GET", "job-take").json()
        return job

    def chunk(self, job_id: str, output: Any) -> httpx2.Response:
        """Post a chunk as the worker would."""
        return self.as_worker("POST", "job-stream", job_id, json.dumps({"output": output}))

    def done(self, job_id: str, body: Any) -> httpx2.Response:
        """Post a result as the worker would."""
        return self.as_worker("POST", "job-done", job_id, json.dumps(body))

    def as_worker(self, method: str, route: str, job: str = "", content: str = "", **params: Any) -> httpx2.Response:
        """Call a route of the worker protocol as the endpoint's first worker."""
        worker = self.endpoint.workers.running[0]
        path = "/".join(filter(None, ("", route, worker.id, job)))
        headers = {"Authorization": worker.secret}
        return self.http.request(method, path, content=content, params={"gpu": "none", **params}, headers=headers)


MakeWorker = Callable[[str], Path]
Serve = Callable[..., Caller]


@pytest.fixture(scope="session")
def make_worker(tmp_path_factory: pytest.TempPathFactory) -> MakeWorker:
    """Lay out a worker in a folder of its own, around one of ``tests/tasks``."""

    def make(task: str) -> Path:
        folder = tmp_path_factory.mktemp("worker")
        shutil.copy(HANDLER, folder)
        (folder / "test_input.json").write_text('{"input": {"items": ["a", "b"]}}')
        shutil.copytree(TESTS / "tasks", folder / "tests" / "tasks", ignore=shutil.ignore_patterns("*.pyc*"))
        shutil.copy(TESTS / "tasks" / f"{task}.py", folder / "task.py")
        return folder

    return make


@pytest.fixture(scope="module")
def serve(make_worker: MakeWorker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Serve an endpoint whose workers run one of ``tests/tasks`` under the given settings, until the module is done."""
    with ExitStack() as stack:

        def start(task: str, workers: int = 1, **env: str) -> Caller:
            log = tmp_path_factory.mktemp("log") / "worker.log"
            output = stack.enter_context(log.open("wb"))
            endpoint = LocalEndpoint(cwd=make_worker(task), workers=workers, env=env, log=output)
            return stack.enter_context(Caller(stack.enter_context(endpoint), log))

        yield start


@pytest.fixture(scope="module")
def shared(serve: Serve) -> Serve:
    """As ``serve``, but the same endpoint for the same task and settings: for jobs that leave a worker as it was."""
    return cache(serve)


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
def fifos(tmp_path: Path) -> Iterator[list[Path]]:
    """Keep an item each busy until the test writes to them, or is over."""
    paths = [tmp_path / f"fifo-{number}" for number in range(6)]
    for path in paths:
        os.mkfifo(path)
    yield paths
    for path in paths:
        os.close(os.open(path, os.O_RDWR))


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
