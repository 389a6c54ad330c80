"""``map`` and small jobs over 1, 2, 4 and 8 workers of a local endpoint, and a million items in ``plan``'s simulation.

``make scale`` runs it. The table goes into docs/scaling.md, the chart beside this file; ``--quick`` takes one round and
writes nothing.
"""

import argparse
import asyncio
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib
from rich.console import Console
from rich.progress import Progress

import plan
import readme
from aggregating_worker.client import Client
from aggregating_worker.client.map import map_file
from aggregating_worker.local import LocalEndpoint
from chart import spread
from clients import answered
from serve import Serve, machine, wait_until_ready

HERE = Path(__file__).parent
SCALING = HERE.parent / "docs" / "scaling.md"
WORKERS = (1, 2, 4, 8)
SECONDS = 0.2
"""Of an item."""
ITEMS, SHARD, AT_ONCE = 1600, 50, 16
"""Of ``map``."""
CLIENTS, JOBS, SLOTS = 64, 80, 4
"""Of the small jobs: how many a worker are sent, and how many a worker does at once."""
MILLION = plan.Plan(items=1_000_000, seconds=0.05, at_once=4, shard=0, in_flight=0, workers=0)
BETWEEN = {"this worker": MILLION.between_jobs, "1 s between jobs, as in the SDK's own loop": 1.0}

Rates = dict[int, list[float]]
"""Items or jobs a second, by workers: one for each round."""


def mapped(endpoint: LocalEndpoint, workers: int) -> float:
    """Return the items per second of ``map``, from the first job submitted to the output written."""
    with tempfile.TemporaryDirectory() as name:
        items, results = Path(name, "items.jsonl"), Path(name, "results.jsonl")
        items.write_text("".join(f'"{number}"\n' for number in range(ITEMS)))
        with items.open("rb") as source:
            summary = asyncio.run(call_map(endpoint, workers, source, results))
    if summary.failed:
        raise SystemExit(f"{summary.failed} of {summary.items} items failed.")
    return float(summary.items / summary.seconds)


async def call_map(endpoint: LocalEndpoint, workers: int, items: BinaryIO, results: Path) -> Any:
    """Return the summary of ``map``."""
    job = {"input": {"seconds": SECONDS}}
    async with Client("local", api_key="any", base_url=endpoint.base_url) as client:
        return await map_file(client, items, results, job=job, shard=SHARD, in_flight=3 * workers)


def measured(serve: Serve, rounds: int) -> tuple[Rates, Rates]:
    """Return the rates of ``map``, and those of small jobs."""
    long: Rates = {workers: [] for workers in WORKERS}
    small: Rates = {workers: [] for workers in WORKERS}
    env = {"ITEM_CONCURRENCY": str(AT_ONCE), "CHUNK_SIZE": "16"}
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("map and small jobs over 1, 2, 4 and 8 workers", total=2 * rounds * len(WORKERS))
        for _ in range(rounds):
            for workers in WORKERS:
                with serve.ours("awaiting", workers=workers, env=env) as endpoint:
                    wait_until_ready(endpoint, workers)
                    long[workers].append(mapped(endpoint, workers))
                progress.advance(task)
                with serve.ours("plain", workers=workers, env={"ITEM_CONCURRENCY": str(SLOTS)}) as endpoint:
                    wait_until_ready(endpoint, workers)
                    job = {"items": ["x"], "seconds": SECONDS}
                    small[workers].append(answered(endpoint.url, CLIENTS, JOBS * workers, job).rate)
                progress.advance(task)
    return long, small


def growth(rates: Rates, workers: int) -> list[float]:
    """Return how many times the rate of one worker, by round."""
    return [rate / one for rate, one in zip(rates[workers], rates[1], strict=True)]


def table(long: Rates, small: Rates, where: str) -> str:
    """Return the measured throughput and what it grows to, in Markdown."""
    rows = [
        "| workers | `map`, items a second | times one worker | small jobs a second | times one worker |",
        "|---|---|---|---|---|",
    ]
    for workers in WORKERS:
        cells = [
            cell
            for rates in (long, small)
            for cell in (f"{statistics.median(rates[workers]):.0f}", spread(growth(rates, workers)))
        ]
        rows.append(f"| {workers} | {' | '.join(cells)} |")
    text = (
        f"Medians and ranges. `map`: {ITEMS:,} items that wait {SECONDS:g} s, {AT_ONCE} at once in a worker, in shards "
        f"of {SHARD}. Small jobs: one such item each, {SLOTS} at once in a worker, from {CLIENTS} clients. "
        f"Measured on {where}."
    )
    return "\n".join([*rows, "", text]) + "\n"


def draw(long: Rates, small: Rates) -> None:
    """Draw what was measured, and how long a million items take in the simulation."""
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "scale", "font.size": 9})
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4))
    left.plot(WORKERS, WORKERS, color="gray", linestyle=":", label="linear")
    for rates, label, color in ((long, "map", "#5b5bd6"), (small, "small jobs", "#e5484d")):
        middles = [statistics.median(growth(rates, workers)) for workers in WORKERS]
        left.plot(WORKERS, middles, color=color, marker="o", label=label)
    left.set_xscale("log", base=2)
    left.set_yscale("log", base=2)
    for axis in (left.xaxis, left.yaxis):
        axis.set_ticks(WORKERS, [str(workers) for workers in WORKERS])
        axis.set_ticks([], minor=True)
    left.set_xlabel("workers")
    left.set_title("times the throughput of one worker, measured", fontsize=9)
    left.legend(frameon=False)
    for workers in (4, 16, 32):
        for (words, gap), style in zip(BETWEEN.items(), ("-", ":"), strict=True):
            minutes = simulated(workers, gap)
            right.plot(
                plan.SHARDS,
                minutes,
                color="#5b5bd6",
                linestyle=style,
                marker=".",
                label=words if workers == 4 else None,
            )
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
    figure.savefig(HERE / "scale.svg", metadata={"Date": None})


def simulated(workers: int, between_jobs: float) -> Sequence[float]:
    """Return the minutes that ``MILLION`` takes so many workers, by shard."""
    plans = [
        replace(MILLION, shard=shard, workers=workers, in_flight=plan.in_flight(workers), between_jobs=between_jobs)
        for shard in plan.SHARDS
    ]
    return [plan.Simulation(each).run().seconds / 60 for each in plans]


def main() -> None:
    """Measure, draw, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round; write nothing")
    arguments = parser.parse_args()
    long, small = measured(Serve(), 1 if arguments.quick else 3)
    text = table(long, small, machine())
    print(text)
    if not arguments.quick:
        readme.write("scale", text, page=SCALING)
        draw(long, small)


if __name__ == "__main__":
    main()
