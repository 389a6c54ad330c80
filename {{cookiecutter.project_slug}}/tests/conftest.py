"""Real workers in their production loop, and a caller."""

import worker.intake.before_sdk  # noqa: F401  # isort: skip  # before the SDK

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from endpoint.local import LocalEndpoint

PROJECT = Path(__file__).parents[1]


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
    """Lay out this worker in a folder of its own, around one of ``tests/tasks``."""

    def make(task: str) -> Path:
        folder = tmp_path_factory.mktemp("worker")
        shutil.copytree(PROJECT / "worker", folder / "worker", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(PROJECT / "handler.py", folder)
        shutil.copy(PROJECT / "test_input.json", folder)
        shutil.copytree(PROJECT / "tests" / "tasks", folder / "tests" / "tasks")
        shutil.copy(PROJECT / "tests" / "tasks" / f"{task}.py", folder / "task.py")
        return folder

    return make


@pytest.fixture(scope="module")
def serve(make_worker: MakeWorker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Serve an endpoint whose workers run a task under the given settings, until the module is done."""
    with ExitStack() as stack:

        def start(task: str, workers: int = 1, **env: str) -> Caller:
            log = tmp_path_factory.mktemp("log") / "worker.log"
            output = stack.enter_context(log.open("wb"))
            endpoint = LocalEndpoint(cwd=make_worker(task), workers=workers, env=env, log=output)
            return stack.enter_context(Caller(stack.enter_context(endpoint), log))

        yield start


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
