"""What the processes of a task bring, and what they save: two cores, and the jobs that a broken worker would eat."""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from chart import spread
from serve import Serve, submit, wait_until_ready

ITEMS, CALL = 64, 0.05
"""Items of pure Python, and the seconds that each keeps a core busy."""
JOBS, CLIENTS = 500, 8
"""Jobs for two workers, one of them broken."""


def two_cores(serve: Serve, rounds: int, done: Callable[[], None]) -> str:
    """Say how many times faster a job of pure Python is with ``PROCESSES=2``."""
    body = {"input": {"items": ["x"] * ITEMS, "seconds": CALL}}
    times = []
    with serve.ours("pure", env={"PROCESSES": "1"}) as one, serve.ours("pure", env={"PROCESSES": "2"}) as two:
        for endpoint in (one, two):
            submit(endpoint, "runsync", {"input": {"items": ["warm", "up"]}})
        for _ in range(rounds):
            seconds = []
            for endpoint in (one, two):
                began = time.monotonic()
                submit(endpoint, "runsync", body)
                seconds.append(time.monotonic() - began)
            times.append(seconds[0] / seconds[1])
            done()
    return spread(times)


def failed_jobs(serve: Serve, done: Callable[[], None]) -> int:
    """Return how many jobs of one item have a failure where one of two workers has lost its GPU."""
    with tempfile.TemporaryDirectory() as folder:
        env = {"BROKEN": str(Path(folder, "broken"))}
        with serve.ours("broken", workers=2, env=env) as endpoint, ThreadPoolExecutor(CLIENTS) as clients:
            wait_until_ready(endpoint, 2)

            def fails(number: int) -> bool:
                job = {"input": {"items": ["x"], "breaks": number == CLIENTS}}
                return not submit(endpoint, "runsync", job)["output"][0]["success"]

            failed = sum(clients.map(fails, range(JOBS)))
    done()
    return failed
