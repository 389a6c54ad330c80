"""The documented handlers and this worker side by side: same SDK, same local endpoint, in turns, in one run.

``make bench`` runs it, and writes the table into the README and the chart beside this file;
``--quick`` takes fewer rounds and writes nothing.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import many_jobs
import one_job
import processes
import readme
import stop
from chart import Row, draw, figures, table
from serve import Serve, machine

Bar = Callable[[str, int], Callable[[], None]]
"""Makes a progress bar of so many steps, and returns what advances it."""
KINDS = {"sync": "plain", "async": "awaiting", "batch": "batch"}
"""The starting points, and what stands for each here."""


def between_jobs(serve: Serve, rounds: int, bar: Bar) -> tuple[list[Row], list[str]]:
    """Measure what lies between jobs, up to the worker's exit."""
    rows = []
    for load in many_jobs.LOADS:
        row, per_call = many_jobs.run(serve, load, rounds, bar(load.words, rounds))
        rows.append(row)
    words = "a one-item job beside one of 3,000 items"
    done = bar(words, len(KINDS))
    later = {kind: many_jobs.beside(serve, task, 3 * rounds, done) for kind, task in KINDS.items()}
    tries = 4 * rounds
    done = bar("two long jobs, two idle workers", tries * len(KINDS))
    apart = sum(many_jobs.one_each(serve, task, tries, done) for task in KINDS.values())
    rows += stop.run(serve, rounds, bar("SIGTERM", rounds))
    faster = processes.two_cores(serve, rounds, bar("two cores", rounds))
    failed = processes.failed_jobs(serve, bar("a broken worker", 1))
    return rows, [
        f"Items in a call, {row.words}: {statistics.mean(per_call):.1f} in the mean.",
        "Calls of 50 ms by which a one-item job ends later beside one of 3,000 items than alone: "
        + ", ".join(f"{found} with `{kind}`" for kind, found in later.items())
        + ".",
        f"Two long jobs, sent at once to two idle workers: one each in {apart} of {tries * len(KINDS)} rounds.",
        f"{processes.ITEMS} items of 50 ms pure Python on two cores: {faster} times faster with `PROCESSES=2`.",
        f"{processes.JOBS} jobs for two workers, of which one loses its GPU: {failed} jobs have a failure.",
    ]


def within_a_job(serve: Serve, rounds: int, items: int, bar: Bar) -> tuple[list[Row], list[str]]:
    """Measure a job, and the start before it."""
    words = "cold start to the first job taken"
    rows = [one_job.cold_start(serve, rounds, bar(words, rounds))]
    for case in one_job.CASES:
        row, first = one_job.run(serve, case, rounds, bar(case.words, rounds))
        rows.append(row)
    grown = one_job.memory(serve, items, bar(f"memory, {items:,} results of 1 kB", 4))
    return rows, [
        "First result, {}: {} documented, {} here.".format(first.words, *first.medians()),
        f"Memory that a job of {items:,} results of 1 kB adds to the worker, the SDK's own aggregate included: "
        + ", ".join(f"{name} {megabytes:.0f} MB" for name, megabytes in grown.items())
        + ".",
    ]


def headline(rows: Sequence[Row]) -> str:
    """Return what the README says first of the speed, from the table's own ratios."""
    times = {row.words: f"{float(figures(statistics.median(row.ratios()))):.0f}" for row in rows}
    after_another, _, queued, *_ = (times[load.words] for load in many_jobs.LOADS)
    _, _, far, awaits, _, batches = (times[case.words] for case in one_job.CASES)
    return (
        f"{after_another} small jobs one after another where the SDK's own loop does one, {queued} where they queue;\n"
        f"  within a job {far} times as many quick items far away, {batches} times with batches, {awaits} with awaits"
    )


def main() -> None:
    """Run every case and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, a tenth of the memory case; write nothing")
    arguments = parser.parse_args()
    rounds, items = (1, 10_000) if arguments.quick else (3, 30_000)
    serve = Serve()
    columns = TextColumn("{task.description:55}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def bar(words: str, total: int) -> Callable[[], None]:
            task = progress.add_task(words, total=total)
            return lambda: progress.advance(task)

        between, between_notes = between_jobs(serve, rounds, bar)
        within, within_notes = within_a_job(serve, rounds, items, bar)
    where = machine()
    text = table(between + within, [*between_notes, *within_notes, f"Measured on {where}."])
    print(text)
    if not arguments.quick:
        draw(between + within, where)
        readme.write("bench", headline(between + within), text)


if __name__ == "__main__":
    main()
