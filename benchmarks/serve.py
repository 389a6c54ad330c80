"""The documented handlers and this worker, each behind a local endpoint of its own: same machine, same SDK."""

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import httpx2

from aggregating_worker.local import LocalEndpoint

HERE = Path(__file__).parent
AUTHORIZATION = {"Authorization": "Bearer benchmark"}


TEMPLATE = HERE.parent / "{{cookiecutter.project_slug}}"
"""Its ``handler.py`` has nothing of an answer in it."""


class Serve:
    """Serves either side, from this environment.

    ``workers`` are as many, ``distance`` is seconds for each request, ``env`` is a worker's settings.
    """

    @contextmanager
    def documented(self, handler: str, *, workers: int = 1, distance: float = 0) -> Iterator[LocalEndpoint]:
        """Serve one of ``handlers``."""
        command = [sys.executable, "-u", f"{handler}.py"]
        with self._serve(HERE / "handlers", command, workers, distance, {}) as endpoint:
            yield endpoint

    @contextmanager
    def ours(
        self,
        task: str,
        *,
        workers: int = 1,
        distance: float = 0,
        env: Mapping[str, str] | None = None,
        command: Sequence[str] | None = None,
        log: IO[bytes] | None = None,
    ) -> Iterator[LocalEndpoint]:
        """Serve this worker around one of ``tasks``, or around the sample of a starting point."""
        own = HERE / "tasks" / f"{task}.py"
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            shutil.copy(TEMPLATE / "handler.py", folder)
            shutil.copy(own if own.exists() else TEMPLATE / "starting_points" / task / "task.py", folder / "task.py")
            command = command or [sys.executable, "-u", "handler.py"]
            with self._serve(folder, command, workers, distance, env or {}, log) as endpoint:
                yield endpoint

    @contextmanager
    def _serve(
        self,
        folder: Path,
        command: Sequence[str],
        workers: int,
        distance: float,
        env: Mapping[str, str],
        log: IO[bytes] | None = None,
    ) -> Iterator[LocalEndpoint]:
        with tempfile.TemporaryFile() as nowhere:
            log = log or nowhere
            with LocalEndpoint(command, workers=workers, cwd=folder, log=log, distance=distance, env=env) as endpoint:
                yield endpoint


def submit(endpoint: LocalEndpoint, path: str, body: Any = None) -> dict[str, Any]:
    """Post to the endpoint and return its answer; a job that ``runsync`` does not complete ends the program."""
    wait = {"wait": 300_000} if path == "runsync" else None
    answer = httpx2.post(f"{endpoint.url}/{path}", json=body, params=wait, headers=AUTHORIZATION, timeout=600)
    state: dict[str, Any] = answer.raise_for_status().json()
    if path == "runsync" and state["status"] != "COMPLETED":
        raise SystemExit(f"A job ended {state['status']}: {state.get('error')}")
    return state


def wait_until_ready(endpoint: LocalEndpoint, workers: int = 1) -> None:
    """Return once so many workers have polled."""
    while endpoint.workers.states()["ready"] < workers:
        _check(endpoint)
        time.sleep(0.01)


def wait_until_taken(endpoint: LocalEndpoint, job_id: str) -> float:
    """Return when a worker took the job, in seconds of ``time.monotonic``."""
    job = endpoint.queue.jobs[job_id]
    while job.taken is None:
        _check(endpoint)
        time.sleep(0.001)
    return float(job.taken)


def _check(endpoint: LocalEndpoint) -> None:
    if not endpoint.workers.alive:
        raise SystemExit("A worker exited at its start: run make demo to see why.")


def first_job(serve: AbstractContextManager[LocalEndpoint]) -> float:
    """Return the seconds from the start of an endpoint's worker to its first job taken."""
    began = time.monotonic()
    with serve as endpoint:
        return wait_until_taken(endpoint, submit(endpoint, "run", {"input": {"items": ["a"]}})["id"]) - began


def machine() -> str:
    """Name the machine and the versions."""
    cores, python = len(os.sched_getaffinity(0)), f"Python {platform.python_version()}"
    return f"{platform.system()} {platform.machine()}, {cores} cores, {python}, runpod {version('runpod')}"
