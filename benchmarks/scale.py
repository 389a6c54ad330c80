"""``map`` over 1, 2, 4 and 8 workers of a local endpoint, and a million items in the simulation of ``endpoint.plan``.

``make scale`` runs it on a freshly baked worker; the table and the chart go into the baked project's README.
"""

import asyncio
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import matplotlib
import readme
from endpoint import plan
from endpoint.client import Client
from endpoint.client.map import map_file
from endpoint.local import LocalEndpoint
from rich.console import Console
from rich.progress import Progress
from speed import machine

HERE = Path(__file__).parent
TEMPLATE = HERE.parent / "{{cookiecutter.project_slug}}"
ROUNDS = 3
WORKERS = (1, 2, 4, 8)
MEASURED = plan.Plan(
    items=1600, seconds=0.2, at_once=16, shard=50, in_flight=0, workers=0, cold_start=0, queue_delay=0, between_jobs=0
)
MILLION = plan.Plan(items=1_000_000, seconds=0.05, at_once=4, shard=0, in_flight=0, workers=0)
BETWEEN = {"1 s between jobs (`JOB_CONCURRENCY=1`)": 1.0, "none (`JOB_CONCURRENCY=2`)": 0.0}


async def measure(endpoint: LocalEndpoint, workers: int, folder: Path) -> float:
    """Return the items per second of ``map``, from the first job submitted to the output written."""
    items = folder / "items.jsonl"
    items.write_text("".join(f'"{number}"\n' for number in range(MEASURED.items)))
    out = folder / f"{time.monotonic_ns()}.jsonl"
    async with Client("local", api_key="any", base_url=endpoint.base_url) as client:
        with items.open("rb") as source:
            summary = await map_file(
                client,
                source,
                out,
                job={"input": {"seconds": MEASURED.seconds}},
                shard=MEASURED.shard,
                in_flight=3 * workers,
            )
    if summary.failed:
        raise SystemExit(f"{summary.failed} of {summary.items} items failed.")
    return float(summary.items / summary.seconds)


def measured(worker: Path) -> dict[int, list[float]]:
    """Return the items per second of each round, by workers."""
    rates: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    env = {"ITEM_CONCURRENCY": str(MEASURED.at_once), "JOB_CONCURRENCY": "2", "CHUNK_SIZE": "16"}
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryFile() as log, bar() as progress:
        folder = Path(name)
        shutil.copytree(worker / "worker", folder / "worker")
        shutil.copy(worker / "handler.py", folder)
        shutil.copy(HERE / "tasks" / "awaiting.py", folder / "task.py")
        task = progress.add_task("map over 1, 2, 4 and 8 workers", total=ROUNDS * len(WORKERS))
        for _ in range(ROUNDS):
            for workers in WORKERS:
                command = [str(worker / ".venv" / "bin" / "python"), "-u", "handler.py"]
                with LocalEndpoint(command, workers=workers, cwd=folder, env=env, log=log) as endpoint:
                    while endpoint.workers.states()["ready"] < workers:
                        time.sleep(0.05)
                    rates[workers].append(asyncio.run(measure(endpoint, workers, folder)))
                progress.advance(task)
    return rates


def bar() -> Progress:
    """Return a progress bar."""
    return Progress(console=Console(stderr=True))


def table(rates: dict[int, list[float]], where: str) -> str:
    """Return the measured throughput and what it grows to, in Markdown."""
    rows = ["| workers | items per second: median | times one worker: median (range) |", "|---|---|---|"]
    for workers, found in rates.items():
        ratios = [rate / one for rate, one in zip(found, rates[1], strict=True)]
        middle = statistics.median(ratios)
        rows.append(
            f"| {workers} | {statistics.median(found):.0f} | {middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    text = f"{MEASURED.items:,} items that wait {MEASURED.seconds:g} s, {MEASURED.at_once} at once in a worker"
    return "\n".join([*rows, "", f"{text}, in shards of {MEASURED.shard}. Measured on {where}."]) + "\n"


def draw(rates: dict[int, list[float]]) -> None:
    """Draw what was measured, and how long a million items take in the simulation."""
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "scale", "font.size": 9})
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4))
    one = statistics.median(rates[1])
    left.plot(WORKERS, [one * workers for workers in WORKERS], color="gray", linestyle=":", label="linear")
    left.plot(WORKERS, [statistics.median(found) for found in rates.values()], color="#5b5bd6", marker="o", label="map")
    left.set_xscale("log", base=2)
    left.set_yscale("log", base=2)
    left.set_xticks(WORKERS, [str(workers) for workers in WORKERS])
    left.set_yticks([], [], minor=True)
    ticks = [round(one * workers) for workers in WORKERS]
    left.set_yticks(ticks, [str(tick) for tick in ticks])
    left.set_xlabel("workers")
    left.set_title("items per second, measured", fontsize=9)
    left.legend(frameon=False)
    for workers in (4, 16, 32):
        for (words, gap), style in zip(BETWEEN.items(), ("-", ":"), strict=True):
            plans = [
                replace(MILLION, shard=shard, workers=workers, in_flight=plan.in_flight(workers), between_jobs=gap)
                for shard in plan.SHARDS
            ]
            minutes = [plan.Simulation(each).run().seconds / 60 for each in plans]
            label = words.replace("`", "") if workers == 4 else None
            right.plot(plan.SHARDS, minutes, color="#5b5bd6", linestyle=style, marker=".", label=label)
        right.text(plan.SHARDS[-1] * 1.1, minutes[-1], f"{workers} workers", va="center")
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xlim(40, 16_000)
    right.set_xticks(plan.SHARDS, [f"{shard:,}" for shard in plan.SHARDS], rotation=45)
    right.set_xticks([], [], minor=True)
    right.set_yticks([5, 10, 20, 60, 120], ["5", "10", "20", "60", "120"])
    right.set_yticks([], [], minor=True)
    right.set_xlabel("items in a shard")
    right.set_title("minutes for a million items of 50 ms, simulated", fontsize=9)
    right.legend(frameon=False, fontsize=7)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(TEMPLATE / "endpoint" / "scale.svg", metadata={"Date": None})


def main() -> None:
    """Measure, draw, and write what came out."""
    worker = Path(sys.argv[1]).absolute()
    rates = measured(worker)
    readme.write("scale", table(rates, machine(worker)), TEMPLATE / "README.md")
    draw(rates)


if __name__ == "__main__":
    main()
