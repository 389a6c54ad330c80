"""Who calls a worker in a test: over HTTP, through a local endpoint, whose workers run in their production loop."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import httpx2

from aggregating_worker.local.server import LocalEndpoint

RUNNING = ("IN_QUEUE", "IN_PROGRESS")


class Caller:
    """Calls ``endpoint``, whose workers write to ``log``."""

    def __init__(self, endpoint: LocalEndpoint, log: Path) -> None:
        self.endpoint = endpoint
        self.log = log
        self.http = httpx2.Client(base_url=endpoint.url, headers={"Authorization": "Bearer test"}, timeout=60)
        self.get, self.post = self.http.get, self.http.post

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def submit(self, job: Any) -> str:
        """Send a job with ``/run``; return its id. Raises ``httpx2.HTTPStatusError`` if it is not taken."""
        job_id: str = self.post("/run", json=job).raise_for_status().json()["id"]
        return job_id

    def run(self, items: list[Any], **options: Any) -> str:
        """Send a job of ``items`` with ``/run``; return its id."""
        return self.submit(_job(items, options))

    def runsync(self, items: list[Any], **options: Any) -> dict[str, Any]:
        """Send a job of ``items`` with ``/runsync``; return its state."""
        state: dict[str, Any] = self.post("/runsync", json=_job(items, options)).json()
        return state

    def stream(self, job_id: str) -> Iterator[Any]:
        """Yield the chunks of a job as they come, until it has ended."""
        while True:
            state = self.get(f"/stream/{job_id}").raise_for_status().json()
            yield from (chunk["output"] for chunk in state["stream"])
            if state["status"] not in RUNNING and not state["stream"]:
                return

    def status(self, job_id: str) -> dict[str, Any]:
        """Return a job's state."""
        state: dict[str, Any] = self.get(f"/status/{job_id}").raise_for_status().json()
        return state

    def wait_for_log(self, job_id: str, words: str) -> None:
        """Return once a worker has written ``words`` about a job."""
        deadline = time.monotonic() + 20
        while not any(job_id in line and words in line for line in self.log.read_text().splitlines()):
            assert time.monotonic() < deadline
            time.sleep(0.02)


Serve = Callable[..., Caller]
"""Serves an endpoint whose workers run the project under the given settings: ``serve(workers=1, ITEM_TIMEOUT="2")``."""


def off_runpod(**env: str) -> dict[str, str]:
    """Return this process's environment without what makes the SDK think that it is on Runpod, and with ``env``."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RUNPOD_")}
    return {**bare, "RUNPOD_LOG_LEVEL": "INFO", **env}


def _job(items: list[Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return a request; a job that no worker answers fails in 30 s instead of the platform's 10 minutes."""
    return {"input": {"items": items, **options}, "policy": {"executionTimeout": 30_000}}
