"""What a user of each bake would run."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, STARTING_POINTS, Bake


def make(folder: Path, *targets: str) -> None:
    """Run make as a user would: not under the make that runs these tests."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    finished = subprocess.run(
        ["make", *targets], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    print(finished.stdout[-8_000:])
    assert finished.returncode == 0


@pytest.mark.parametrize("starting_point", STARTING_POINTS)
def test_the_baked_project_passes_its_own_lint_and_suite(bake: Bake, starting_point: str) -> None:
    make(bake(starting_point=starting_point), "lint", "test")


def test_the_table_in_the_readme_is_what_the_sdk_does() -> None:
    make(ROOT, "table", "CHECK=--check")
