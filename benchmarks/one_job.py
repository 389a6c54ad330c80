"""What one job costs, given to a documented handler and to this worker in turns: its time, and its memory."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aggregating_worker.local import LocalEndpoint
from aggregating_worker.local.client_api import MAX_BODY
from aggregating_worker.local.job import Job
from chart import Row
from serve import Serve, first_job, submit


@dataclass(frozen=True)
class Case:
    """A job of so many ``items``. Times are seconds: of an item or a call, and of a round trip to the endpoint."""

    words: str
    handler: str
    task: str
    items: int
    seconds: float = 0
    distance: float = 0
    chunk_size: int = 1
    at_once: int = 1
    """Items under way at once: ``ITEM_CONCURRENCY``, or ``BATCH_SIZE``."""

    @property
    def limit(self) -> float | None:
        """How many times faster latency and concurrency allow; None where they cost nothing."""
        return self._documented() / self._worker() if self.seconds or self.distance else None

    def _documented(self) -> float:
        """Return the least seconds for items one by one, each with a round trip of its own, and one for the end."""
        return self.items * (self.seconds + self.distance) + self.distance

    def _worker(self) -> float:
        """Return the least seconds for this worker: the slower of its calls and its posts, and what follows them."""
        calls = math.ceil(self.items / self.at_once) * self.seconds
        first = min(self.items, 1 if self.chunk_size > 1 else self.items)
        posts = first + math.ceil((self.items - first) / self.chunk_size)
        return max(calls + self.distance, self.seconds + posts * self.distance) + self.distance


CASES = [
    Case("400 instant items, plain, near", "sync_generator", "plain", 400),
    Case("400 instant items, async, near", "async_generator", "awaiting", 400),
    Case("400 instant items, 20 ms away, `CHUNK_SIZE=64`", "sync_generator", "plain", 400, 0, 0.02, 64),
    Case("100 awaits of 50 ms, near", "async_generator", "awaiting", 100, 0.05, at_once=32),
    Case(
        "200 awaits of 50 ms, 20 ms away, `CHUNK_SIZE=64`",
        "async_generator",
        "awaiting",
        200,
        0.05,
        0.02,
        64,
        at_once=32,
    ),
    Case("128 items, 50 ms a call (batch), near", "sync_generator", "batch", 128, 0.05, at_once=32),
]


def cold_start(serve: Serve, rounds: int, done: Callable[[], None]) -> Row:
    """Time from the start of a worker's process to its first job taken."""
    row = Row("cold start to the first job taken")
    for _ in range(rounds):
        row.documented.append(first_job(serve.documented("sync_generator")))
        row.worker.append(first_job(serve.ours("sync")))
        done()
    return row


def run(serve: Serve, case: Case, rounds: int, done: Callable[[], None]) -> tuple[Row, Row]:
    """Time the job, and its first result."""
    row, first = Row(case.words, limit=case.limit), Row(case.words)
    with (
        serve.documented(case.handler, distance=case.distance) as theirs,
        serve.ours(case.task, distance=case.distance, env={"CHUNK_SIZE": str(case.chunk_size)}) as ours,
    ):
        body = {"input": {"items": [str(n) for n in range(case.items)], "seconds": case.seconds}}
        for endpoint in (theirs, ours):  # the first job of a process pays for what it imports
            submit(endpoint, "runsync", {"input": {"items": ["warm", "up"], "seconds": 0}})
        for _ in range(rounds):
            for endpoint, totals, firsts in (
                (theirs, row.documented, first.documented),
                (ours, row.worker, first.worker),
            ):
                whole, beginning = timed(endpoint, body)
                totals.append(whole)
                firsts.append(beginning)
            done()
    return row, first


def timed(endpoint: LocalEndpoint, body: Any) -> tuple[float, float]:
    """Run a job; return the seconds from its first item's start to its end, and to its first chunk's arrival.

    Not from the job's being taken: the SDK's own loop (1.12.0, ``rp_scale.run_jobs``) looks for it every 0.1 s, by
    chance sooner. The clock is the machine's, the same in the worker's process and in this one.
    """
    first: dict[str, float] = {}

    def watch(job: Job, *chunk: bytes) -> None:
        if chunk:
            first.setdefault(job.id, time.monotonic())

    endpoint.queue.watchers.append(watch)
    state = submit(endpoint, "runsync", body)
    endpoint.queue.watchers.remove(watch)
    one = state["output"][0][0] if isinstance(state["output"][0], list) else state["output"][0]
    began = one.get("result", one)["began"]
    return float(endpoint.queue.jobs[state["id"]].ended - began), first[state["id"]] - began


def memory(serve: Serve, items: int, done: Callable[[], None]) -> dict[str, float]:
    """Return the megabytes that a job of ``items`` results of 1 kB adds to a worker, at its peak."""
    MAX_BODY.update(run=10**9, runsync=10**9)
    env = {"CHUNK_SIZE": "64", "MAX_ITEMS": str(10**6), "MAX_OUTPUT_BYTES": str(10**9)}
    served = {"documented": serve.documented("sync_generator")} | {
        f"LOOKAHEAD={lookahead}": serve.ours("plain", env={"LOOKAHEAD": str(lookahead), **env})
        for lookahead in (1, 64, 1024)
    }
    grown = {}
    for name, serving in served.items():
        with serving as endpoint:
            submit(endpoint, "runsync", {"input": {"items": ["warm", "up"]}})
            [worker] = endpoint.workers.running
            before = peak(worker.process.pid)
            submit(endpoint, "runsync", {"input": {"items": ["x"] * items, "size": 1_000}})
            grown[name] = peak(worker.process.pid) - before
        done()
    return grown


def peak(pid: int) -> float:
    """Return the most memory that a process has held, in MB (Linux: ``VmHWM`` of /proc/PID/status)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
