"""What lies between jobs: how many small ones a worker does in a second, and which worker does the long ones."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from aggregating_worker.local import LocalEndpoint
from chart import Row, spread
from clients import answered
from serve import Serve, submit, wait_until_ready, wait_until_taken

FEW = 5
"""Jobs a round for a documented handler, which does one a second."""
CALL = 0.05
"""Seconds of a call."""


@dataclass(frozen=True)
class Load:
    """Jobs of one item from a number of ``clients``. Times are seconds: of a call, and of a round trip."""

    words: str
    handler: str
    task: str
    clients: int
    jobs: int
    """A round, for this worker."""
    seconds: float = 0
    distance: float = 0
    limit: float | None = None
    """Jobs a second that latency and concurrency allow: as many times the documented handler's one."""
    env: Mapping[str, str] = field(default_factory=dict)


LOADS = [
    Load("one-item instant jobs, one after another, near", "sync_generator", "plain", 1, 1000),
    Load("one-item instant jobs, one after another, 20 ms away", "sync_generator", "plain", 1, 50, 0, 0.02, 1 / 0.06),
    Load("one-item instant jobs, queued", "sync_generator", "plain", 16, 2000),
    Load(
        "queued one-item jobs of 0.2 s, `ITEM_CONCURRENCY=1`",
        "sync_generator",
        "plain",
        16,
        20,
        0.2,
        limit=5,
        env={"ITEM_CONCURRENCY": "1"},
    ),
    Load("queued one-item jobs of 0.2 s", "sync_generator", "plain", 16, 80, 0.2, limit=20),
    Load("32 clients, an await of 50 ms a job", "async_generator", "awaiting", 32, 1600, CALL, limit=640),
    Load("32 clients, an item a job, 50 ms a call (batch)", "sync_generator", "batch", 32, 1600, CALL, limit=640),
]


def run(serve: Serve, load: Load, rounds: int, done: Callable[[], None]) -> tuple[Row, list[float]]:
    """Count jobs a second, and the mean number of items that a call of this worker's had, by round."""
    row, per_call = Row(load.words, limit=load.limit, rates=True), []
    job = {"items": ["x"], "seconds": load.seconds}
    with (
        serve.documented(load.handler, distance=load.distance) as theirs,
        serve.ours(load.task, distance=load.distance, env=load.env) as ours,
    ):
        for _ in range(rounds):
            row.documented.append(answered(theirs.url, load.clients, FEW, job).rate)
            found = answered(ours.url, load.clients, load.jobs, job)
            row.worker.append(found.rate)
            per_call.append(found.jobs / found.calls)
            done()
    return row, per_call


def beside(serve: Serve, task: str, rounds: int, done: Callable[[], None]) -> str:
    """Say how many calls later a job of one item ends beside one of 3,000 than alone."""

    def one(endpoint: LocalEndpoint) -> float:
        began = time.monotonic()
        submit(endpoint, "runsync", {"input": {"items": ["x"], "seconds": CALL}})
        return time.monotonic() - began

    with serve.ours(task) as endpoint:
        one(endpoint)
        alone = statistics.median(one(endpoint) for _ in range(rounds))
        long = endpoint.queue.jobs[submit(endpoint, "run", {"input": {"items": ["x"] * 3000, "seconds": CALL}})["id"]]
        wait_until_taken(endpoint, long.id)
        time.sleep(CALL)
        later: list[float] = []
        while len(later) < rounds and not long.final:
            later.append((one(endpoint) - alone) / CALL)
        submit(endpoint, f"cancel/{long.id}")
        done()
    return spread(later)


def one_each(serve: Serve, task: str, rounds: int, done: Callable[[], None]) -> int:
    """Return in how many rounds two long jobs went to two idle workers, one each."""
    apart = 0
    body = {"input": {"items": ["x"] * 300, "seconds": 0.02}}
    with serve.ours(task, workers=2, env={"CHUNK_SIZE": "64"}) as endpoint:
        wait_until_ready(endpoint, 2)
        for _ in range(rounds):
            jobs = [endpoint.queue.jobs[submit(endpoint, "run", body)["id"]] for _ in range(2)]
            while not all(job.final for job in jobs):
                time.sleep(0.01)
            apart += jobs[0].worker != jobs[1].worker
            done()
    return apart
