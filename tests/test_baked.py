"""What a user of each bake would run."""

import pytest

from tests.conftest import ROOT, STARTING_POINTS, Bake, make


@pytest.mark.parametrize("starting_point", STARTING_POINTS)
def test_the_baked_project_passes_its_own_lint_and_suite(bake: Bake, starting_point: str) -> None:
    make(bake(starting_point=starting_point), "lint", "test")


def test_the_table_in_the_readme_is_what_the_sdk_does() -> None:
    make(ROOT, "table", "CHECK=--check")
