"""Schedules that nobody thought of, in virtual time: each holds all that the worker promises."""

import os
import subprocess
import sys

import pytest

from tests.conftest import LIBRARY
from tests.simulation.__main__ import SEEDS, table
from tests.simulation.planted import PLANTED, Planted
from tests.simulation.schedule import Run, Schedule, found_by

EACH = 20
"""Schedules in a test."""


@pytest.mark.parametrize("number", range(80))
def test_no_schedule_breaks_a_promise(number: int) -> None:
    seeds = range(number * EACH, (number + 1) * EACH)
    assert {seed: what for seed in seeds if (what := found_by(seed))} == {}


def test_no_schedule_that_has_once_found_something_finds_it_again() -> None:
    seeds = [int(line.split()[0]) for line in SEEDS.read_text(encoding="utf-8").splitlines()]
    assert {seed: what for seed in seeds if (what := found_by(seed))} == {}


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name[:60])
def test_a_planted_defect_is_found_by_the_schedule_that_the_table_says(planted: Planted) -> None:
    """It finds nothing without the defect; if it does not with it any more, ``make simulate PLANTED=1`` has another."""
    seed = table()[planted.name]
    assert found_by(seed) == ""
    assert planted.found(range(seed, seed + 1))[0] == seed


def test_a_seed_is_the_same_schedule_wherever_it_runs() -> None:
    """Whatever ran before it, and in whichever order this Python has its sets."""
    code = "from tests.test_simulation import histories; print(histories())"
    path = os.pathsep.join(sys.path)
    said = {
        subprocess.check_output(
            [sys.executable, "-c", code],
            cwd=LIBRARY,
            env={**os.environ, "PYTHONHASHSEED": number, "PYTHONPATH": path},
            text=True,
        ).strip()
        for number in "12"
    }
    assert said == {histories()}


def histories() -> str:
    """Return all that happens under a few seeds."""
    found = []
    for seed in range(100, 130):
        run = Run(Schedule(seed))
        run.go()
        found += run.world.history
    return repr(found)
