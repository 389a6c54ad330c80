"""``make simulate``: schedules that nobody thought of, on all cores, until the time is over."""

import argparse
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from itertools import count
from pathlib import Path

from tests.simulation.clock import Broken
from tests.simulation.planted import LIBRARY, PLANTED
from tests.simulation.schedule import Run, Schedule, failed, found_by

SEEDS = Path(__file__).with_name("seeds.txt")
AT_ONCE = 20
"""Seeds that a process is given together."""
MOST = 20_000
"""Schedules in which a planted defect has to be found."""
PAGE = LIBRARY.parent / "CONTRIBUTING.md"
BEGIN, END = "<!-- planted: by `make simulate PLANTED=1` -->\n", "<!-- /planted -->"


def simulate(seconds: float) -> int:
    """Run schedules for so long; return the exit status."""
    until, begin, schedules, failures = time.monotonic() + seconds, random.randrange(10**9), 0, 0

    def chunks() -> Iterator[range]:
        for number in count():
            if time.monotonic() > until:
                return
            yield range(begin + number * AT_ONCE, begin + (number + 1) * AT_ONCE)

    cores = os.cpu_count() or 1
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
        given = chunks()
        waiting: list[tuple[range, Future[list[tuple[int, str]]]]] = []
        while True:
            waiting += [
                (seeds, pool.submit(failed, seeds))
                for _, seeds in zip(range(2 * cores - len(waiting)), given, strict=False)
            ]
            if not waiting:
                break
            seeds, done = waiting.pop(0)
            for seed, what in done.result():
                print(f"{seed}  {what}")
                with SEEDS.open("a", encoding="utf-8") as file:
                    file.write(f"{seed}  {what}\n")
                failures += 1
            schedules += len(seeds)
            if sys.stderr.isatty():
                print(f"\r{schedules:,} schedules, {failures} failed", end="\r", file=sys.stderr)
    print(f"{schedules:,} schedules, {failures} failed")
    return int(failures > 0)


def write_table() -> None:
    """Write into CONTRIBUTING.md which schedule is the first to find each planted defect."""
    rows = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda planted: planted.found(range(MOST)), PLANTED)
        for planted, (seed, what) in zip(PLANTED, found, strict=True):
            rows.append(f"| {planted.name} | {seed + 1:,} |\n")
            print(f"{seed + 1:6,}  {planted.name}\n        {what}", flush=True)
    table = f"| planted | schedules until it is found |\n|---|---:|\n{''.join(rows)}"
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{table}{END}{rest.partition(END)[2]}", encoding="utf-8")


def table() -> dict[str, int]:
    """Return the first seed that finds each planted defect, as CONTRIBUTING.md has it."""
    rows = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].splitlines()[2:]
    cells = [row.strip("| ").rsplit(" | ", 1) for row in rows]
    return {name: int(number.replace(",", "")) - 1 for name, number in cells}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--planted", action="store_true", help="find the planted defects, and write the table")
    parser.add_argument("--first", type=int, nargs=2, metavar=("BEGIN", "END"), help="print the first seed that fails")
    parser.add_argument("--seed", type=int, help="run this one, and say all that happens")
    given = parser.parse_args()
    if given.planted:
        write_table()
    elif given.first:
        found = ((seed, what) for seed in range(*given.first) if (what := found_by(seed)))
        print(*next(found, ()))
    elif given.seed is not None:
        return show(given.seed)
    else:
        return simulate(given.seconds)
    return 0


def show(seed: int) -> int:
    """Run the schedule of a seed, and say all that happens."""
    one = Run(Schedule(seed))
    print(one.schedule.kind, one.schedule.settings, *one.schedule.jobs, sep="\n")
    try:
        one.go()
    except Broken as broken:
        print(broken)
        return 1
    finally:
        for at, what in one.world.history:
            print(f"{at:10.3f}  {what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
