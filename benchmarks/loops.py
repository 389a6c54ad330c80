"""The worker on asyncio's own event loop and on uvloop, in turns: its processor time, and what comes through.

``make loops`` runs it, and writes the table in docs/decisions/asyncio-alone.md. Processor time is that of the worker's
event loop; the task has a process of its own.
"""

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track

import readme
from aggregating_worker.local import LocalEndpoint
from chart import spread
from clients import answered
from serve import Serve, machine, submit

PAGE = Path(__file__).parents[1] / "docs" / "decisions" / "asyncio-alone.md"
ROUNDS = 5
ON_UVLOOP = "import runpy, uvloop; uvloop.install(); runpy.run_path('handler.py', run_name='__main__')"


@dataclass(frozen=True)
class Case:
    """So many ``jobs`` of so many ``items``, from a number of ``clients``; ``seconds`` are an item's or a call's."""

    words: str
    task: str
    jobs: int
    clients: int = 1
    items: int = 1
    seconds: float = 0
    chunk_size: int = 1


CASES = (
    Case("one-item instant jobs, one after another", "plain", 200),
    Case("one-item instant jobs, queued", "plain", 500, 16),
    Case("32 clients, an await of 50 ms a job", "awaiting", 500, 32, seconds=0.05),
    Case("32 clients, an item a job, 50 ms a call (batch)", "batch", 500, 32, seconds=0.05),
    Case("1,000 instant items in a job", "plain", 1, items=1_000),
    Case("4,000 instant items in a job, `CHUNK_SIZE=64`", "plain", 1, items=4_000, chunk_size=64),
    Case("1,000 awaits of 50 ms in a job", "awaiting", 1, items=1_000, seconds=0.05),
)


def work(endpoint: LocalEndpoint, case: Case) -> float:
    """Return the seconds that the case's jobs take."""
    job = {"items": ["x"] * case.items, "seconds": case.seconds}
    if case.clients > 1 or case.jobs > 1:
        return answered(endpoint.url, case.clients, case.jobs, job).seconds
    began = time.monotonic()
    submit(endpoint, "runsync", {"input": job})
    return time.monotonic() - began


def used(endpoint: LocalEndpoint) -> float:
    """Return the seconds of processor time that the worker's main thread has used (Linux)."""
    [worker] = endpoint.workers.running
    return int(Path(f"/proc/{worker.process.pid}/schedstat").read_text().split()[0]) / 1e9


def measured(serve: Serve, case: Case) -> str:
    """Return the case's row."""
    env = {"CHUNK_SIZE": str(case.chunk_size)}
    cost: tuple[list[float], list[float]] = ([], [])
    took: tuple[list[float], list[float]] = ([], [])
    uvloop = [sys.executable, "-c", ON_UVLOOP]
    with serve.ours(case.task, env=env) as plain, serve.ours(case.task, env=env, command=uvloop) as other:
        for endpoint in (plain, other):  # the first job of a process pays for what it imports
            work(endpoint, case)
        for _ in range(ROUNDS):
            for endpoint, costs, seconds in zip((plain, other), cost, took, strict=True):
                before = used(endpoint)
                seconds.append(work(endpoint, case))
                costs.append((used(endpoint) - before) / (case.jobs * case.items))
    micro = (f"{statistics.median(costs) * 1e6:.0f} µs" for costs in cost)
    ratios = ([one / two for one, two in zip(*pair, strict=True)] for pair in (cost, took))
    return f"| {' | '.join([case.words, *micro, *map(spread, ratios)])} |"


def main() -> None:
    """Measure every case, and write the table."""
    serve = Serve()
    rows = [
        "| case | processor time an item: asyncio | uvloop | times less with uvloop | times faster |",
        "|---|---|---|---|---|",
        *(measured(serve, case) for case in track(CASES, "two event loops", console=Console(stderr=True))),
    ]
    text = "\n".join([*rows, "", f"Medians and ranges of {ROUNDS} rounds in turns. Measured on {machine()}.", ""])
    print(text)
    readme.write("loops", text, page=PAGE)


if __name__ == "__main__":
    main()
