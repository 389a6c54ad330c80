"""The documented handlers and this worker side by side: same SDK, same local endpoint, in turns, in one run.

``make bench`` runs it on a freshly baked worker and writes the table into the README and the chart beside this file;
``--quick`` takes fewer rounds and writes nothing.
"""

import argparse
import math
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import matplotlib
import readme
from endpoint.local import LocalEndpoint
from endpoint.local.client_api import MAX_BODY
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

HERE = Path(__file__).parent
CHART = HERE / "speed.svg"
AUTHORIZATION = {"Authorization": "Bearer benchmark"}


@dataclass(frozen=True)
class Case:
    """One job, given to a documented handler and to this worker."""

    words: str
    handler: str
    task: str
    items: int
    seconds: float = 0
    distance: float = 0
    chunk_size: int = 1
    at_once: int = 1
    """Items under way at once: ``ITEM_CONCURRENCY``, or ``BATCH_SIZE``."""

    def documented_limit(self) -> float:
        """Return the least seconds for items one by one, each with a round trip of its own, and one for the end."""
        return self.items * (self.seconds + self.distance) + self.distance

    def worker_limit(self) -> float:
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


@dataclass
class Timing:
    """Seconds, per round."""

    documented: list[float]
    worker: list[float]
    first_documented: list[float]
    first_worker: list[float]

    def ratios(self) -> list[float]:
        """How many times faster this worker was, per round."""
        return [theirs / ours for theirs, ours in zip(self.documented, self.worker, strict=True)]


class Bench:
    """Workers of both kinds, around ``worker``, a baked project whose environment runs them all."""

    def __init__(self, worker: Path, rounds: int) -> None:
        self.rounds = rounds
        self._worker = worker
        self._python = str(worker / ".venv" / "bin" / "python")

    @contextmanager
    def documented(self, handler: str, distance: float = 0) -> Iterator[LocalEndpoint]:
        """Serve a documented handler."""
        with self._serve(HERE / "handlers", f"{handler}.py", distance, {}) as endpoint:
            yield endpoint

    @contextmanager
    def ours(self, task: str | None, distance: float = 0, env: dict[str, str] | None = None) -> Iterator[LocalEndpoint]:
        """Serve this worker around one of ``tasks``, or around its own."""
        with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
            folder = self._worker
            if task:
                folder = Path(name)
                shutil.copytree(self._worker / "worker", folder / "worker")
                shutil.copy(self._worker / "handler.py", folder)
                shutil.copy(HERE / "tasks" / f"{task}.py", folder / "task.py")
            yield stack.enter_context(self._serve(folder, "handler.py", distance, env or {}))

    @contextmanager
    def _serve(self, folder: Path, file: str, distance: float, env: dict[str, str]) -> Iterator[LocalEndpoint]:
        with tempfile.TemporaryFile() as log:
            command = [self._python, "-u", file]
            with LocalEndpoint(command, cwd=folder, log=log, distance=distance, env=env) as endpoint:
                yield endpoint

    def cold_start(self, done: Callable[[], None]) -> Timing:
        """Time from the start of a worker's process to its first job taken."""
        timing = Timing([], [], [], [])
        for _ in range(self.rounds):
            timing.documented.append(first_job(self.documented("sync_generator")))
            timing.worker.append(first_job(self.ours(None)))
            done()
        return timing

    def run(self, case: Case, done: Callable[[], None]) -> Timing:
        """Time a job, in turns with the documented handler."""
        env = {"CHUNK_SIZE": str(case.chunk_size)}
        timing = Timing([], [], [], [])
        with (
            self.documented(case.handler, case.distance) as theirs,
            self.ours(case.task, case.distance, env) as ours,
        ):
            body = {"input": {"items": [str(n) for n in range(case.items)], "seconds": case.seconds}}
            for endpoint in (theirs, ours):  # the first job of a process pays for what it imports
                submit(endpoint, {"input": {"items": ["warm", "up"], "seconds": 0}}, "runsync")
            for _ in range(self.rounds):
                for endpoint, totals, firsts in (
                    (theirs, timing.documented, timing.first_documented),
                    (ours, timing.worker, timing.first_worker),
                ):
                    total, first = timed(endpoint, body)
                    totals.append(total)
                    firsts.append(first)
                done()
        return timing

    def memory(self, items: int, done: Callable[[], None]) -> dict[str, float]:
        """Return the megabytes that a job of ``items`` results of 1 kB adds to a worker, at its peak."""
        MAX_BODY.update(run=10**9, runsync=10**9)
        env = {"CHUNK_SIZE": "64", "MAX_ITEMS": str(10**6), "MAX_OUTPUT_BYTES": str(10**9)}
        served = {"documented": lambda: self.documented("sync_generator")} | {
            f"LOOKAHEAD={lookahead}": lambda lookahead=lookahead: self.ours(
                "plain", env={"LOOKAHEAD": str(lookahead), **env}
            )
            for lookahead in (1, 64, 1024)
        }
        grown = {}
        for name, serve in served.items():
            with serve() as endpoint:
                submit(endpoint, {"input": {"items": ["warm", "up"]}}, "runsync")
                [worker] = endpoint.workers.running
                before = peak(worker.process.pid)
                submit(endpoint, {"input": {"items": ["x"] * items, "size": 1_000}}, "runsync")
                grown[name] = peak(worker.process.pid) - before
            done()
        return grown


def first_job(serve: AbstractContextManager[LocalEndpoint]) -> float:
    """Return the seconds from the start of an endpoint's worker to its first job taken."""
    began = time.monotonic()
    with serve as endpoint:
        job_id = submit(endpoint, {"input": {"items": ["a"]}}, "run")["id"]
        job = endpoint.queue.jobs[job_id]
        while job.taken is None:
            if not endpoint.workers.alive:
                raise SystemExit("A worker exited at its start: run make demo to see why.")
            time.sleep(0.001)
        return float(job.taken - began)


def submit(endpoint: LocalEndpoint, body: Any, path: str) -> dict[str, Any]:
    """Call the endpoint and return its answer."""
    method = "GET" if body is None else "POST"
    wait = {"wait": 300_000} if path == "runsync" else None
    answer = httpx.request(
        method, f"{endpoint.url}/{path}", json=body, params=wait, headers=AUTHORIZATION, timeout=600
    ).raise_for_status()
    state: dict[str, Any] = answer.json()
    if path == "runsync" and state["status"] != "COMPLETED":
        raise SystemExit(f"A job ended {state['status']}: {state.get('error')}")
    return state


def timed(endpoint: LocalEndpoint, body: Any) -> tuple[float, float]:
    """Run a job; return the seconds from its first item's start to its end, and to its first chunk's arrival.

    Not from the job's being taken: the SDK (1.12.0, ``rp_scale.run_jobs``) looks for it every 0.1 s, by chance sooner.
    The clock is the machine's, the same in the worker's process and in this one.
    """
    first: dict[str, float] = {}
    stream = endpoint.queue.stream

    def watch(job: Any, chunk: Any) -> None:
        first.setdefault(job.id, time.monotonic())
        stream(job, chunk)

    endpoint.queue.stream = watch
    state = submit(endpoint, body, "runsync")
    endpoint.queue.stream = stream
    one = state["output"][0][0] if isinstance(state["output"][0], list) else state["output"][0]
    began = one.get("result", one)["began"]
    return float(endpoint.queue.jobs[state["id"]].ended - began), first[state["id"]] - began


def peak(pid: int) -> float:
    """Return the most memory that a process has held, in MB (Linux: ``VmHWM`` of /proc/PID/status)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def machine(worker: Path) -> str:
    """Name the machine and the versions."""
    python = subprocess.check_output([worker / ".venv/bin/python", "--version"], text=True).strip()
    sdk = subprocess.check_output(
        [worker / ".venv/bin/python", "-c", "from importlib.metadata import version; print(version('runpod'))"],
        text=True,
    ).strip()
    cores = len(os.sched_getaffinity(0))
    return f"{platform.system()} {platform.machine()}, {cores} cores, {python}, runpod {sdk}"


def spread(values: list[float]) -> str:
    """Return the median and the range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def seconds(values: list[float]) -> str:
    """Return the median, in seconds."""
    return f"{statistics.median(values):.3f} s"


def table(timings: list[tuple[str, Timing, float | None]], grown: dict[str, float], items: int, where: str) -> str:
    """Return the results in Markdown."""
    rows = [
        "| case | documented | this worker | times faster: median (range) | limit |",
        "|---|---|---|---|---|",
    ]
    for words, timing, limit in timings:
        cells = [words, seconds(timing.documented), seconds(timing.worker), f"**{spread(timing.ratios())}**"]
        rows.append(f"| {' | '.join(cells)} | {f'{limit:.1f}' if limit else '–'} |")
    rows += [
        "",
        f"First result, {timings[-1][0]}: {seconds(timings[-1][1].first_documented)} documented, "
        f"{seconds(timings[-1][1].first_worker)} here.",
        "",
        f"Memory that a job of {items:,} results of 1 kB adds to the worker, the SDK's own aggregate included: "
        + ", ".join(f"{name} {megabytes:.0f} MB" for name, megabytes in grown.items())
        + ".",
        "",
        f"Measured on {where}.",
    ]
    return "\n".join(rows) + "\n"


def draw(timings: list[tuple[str, Timing, float | None]], where: str) -> None:
    """Draw the ratios, with their spread and their limits."""
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "speed", "font.size": 9})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.5 * len(timings) + 1.2))
    for row, (_, timing, limit) in enumerate(reversed(timings)):
        ratios = timing.ratios()
        middle = statistics.median(ratios)
        axes.barh(row, middle - 1, left=1, height=0.6, color="#5b5bd6")
        axes.plot([min(ratios), max(ratios)], [row, row], color="black", linewidth=1)
        axes.text(max(*ratios, limit or 1) * 1.06, row, f"{middle:.1f}×", va="center")
        if limit:
            axes.plot([limit, limit], [row - 0.35, row + 0.35], color="#e5484d", linewidth=2)
    axes.axvline(1, color="gray", linewidth=1)
    axes.set_yticks(range(len(timings)), [words.replace("`", "") for words, _, _ in reversed(timings)])
    axes.set_xscale("log")
    axes.set_xlim(0.5, 100)
    axes.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    axes.set_xlabel(
        "times faster than the documented handler\n"
        "(thin line: range of the rounds; red: what latency and concurrency allow)"
    )
    axes.set_title(where, fontsize=8, color="gray")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(CHART, metadata={"Date": None})


def main() -> None:
    """Run every case and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("worker", type=Path, help="a baked worker with its environment installed")
    parser.add_argument("--quick", action="store_true", help="one round, a tenth of the memory case; write nothing")
    arguments = parser.parse_args()
    rounds, items = (1, 10_000) if arguments.quick else (5, 100_000)
    bench = Bench(arguments.worker.absolute(), rounds)
    columns = TextColumn("{task.description:50}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    timings: list[tuple[str, Timing, float | None]] = []
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def bar(words: str, total: int) -> Callable[[], None]:
            task = progress.add_task(words, total=total)
            return lambda: progress.advance(task)

        words = "cold start to the first job taken"
        timings.append((words, bench.cold_start(bar(words, rounds)), None))
        for case in CASES:
            limit = case.documented_limit() / case.worker_limit() if case.seconds or case.distance else None
            timings.append((case.words, bench.run(case, bar(case.words, rounds)), limit))
        grown = bench.memory(items, bar(f"memory, {items} results of 1 kB", 4))
    where = machine(arguments.worker)
    text = table(timings, grown, items, where)
    print(text)
    if not arguments.quick:
        draw(timings, where)
        readme.write("bench", text)


if __name__ == "__main__":
    main()
