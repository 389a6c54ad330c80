"""How long a worker takes to exit when it is told to stop."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial

from aggregating_worker.local import LocalEndpoint, worker_api
from chart import Row
from serve import Serve, submit, wait_until_ready, wait_until_taken

HELD = 30.0
"""Seconds for which the endpoint holds a poll that it has no news for."""


def run(serve: Serve, rounds: int, done: Callable[[], None]) -> list[Row]:
    """Time the exit of an idle worker from SIGTERM on, and that of a busy one from its job's delivery on."""
    worker_api.POLL_SECONDS = HELD
    idle = Row(f"SIGTERM while idle, to the exit, polls held for {HELD:g} s")
    busy = Row("SIGTERM in a job, from its delivery to the exit, the same")
    for _ in range(rounds):
        with ThreadPoolExecutor() as pool:
            sides = pool.map(exits, [serve.documented("sync_generator", workers=2), serve.ours("plain", workers=2)])
        for times, row in zip(zip(*sides, strict=True), (idle, busy), strict=True):
            row.documented.append(times[0])
            row.worker.append(times[1])
        done()
    return [idle, busy]


def exits(serve: AbstractContextManager[LocalEndpoint]) -> tuple[float, float]:
    """Tell two workers to stop, one of them in a job; return the seconds that the idle and the busy one took."""
    ended: dict[str, float] = {}

    def note(worker_id: str, _: Future[int]) -> None:
        ended[worker_id] = time.monotonic()

    with serve as endpoint:
        wait_until_ready(endpoint, 2)
        job = endpoint.queue.jobs[submit(endpoint, "run", {"input": {"items": ["x"], "seconds": 2}})["id"]]
        wait_until_taken(endpoint, job.id)
        time.sleep(1)  # the SDK's own loop begins a job up to 0.1 s after it has come
        workers = list(endpoint.workers.running)
        told = time.monotonic()
        for worker in workers:
            worker.stopping = True  # and is not replaced
            worker.exited.add_done_callback(partial(note, worker.id))
            os.kill(worker.process.pid, signal.SIGTERM)
        failed = any(worker.exited.result() for worker in workers)
        if failed or job.status != "COMPLETED" or job.worker is None or job.ended is None:
            raise SystemExit("A worker that was told to stop has not ended well.")
        [idle] = ended.keys() - {job.worker}
        return ended[idle] - told, ended[job.worker] - job.ended
