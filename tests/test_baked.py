"""What a user of each bake would run."""

import pytest

from tests.conftest import ROOT, STARTING_POINTS, Bake, make

OF_EACH = "tests/test_task.py tests/machinery/test_settings.py tests/machinery/test_deploy.py"
"""The tests of what a starting point brings; the others' subject is the same file in every bake (``test_bake.py``)."""


@pytest.mark.parametrize("starting_point", STARTING_POINTS)
def test_the_baked_project_passes_its_own_lint_and_suite(bake: Bake, starting_point: str) -> None:
    tests = "" if starting_point == STARTING_POINTS[0] else OF_EACH
    make(bake(starting_point=starting_point), "lint", "test-all", f"TESTS={tests}")


def test_the_table_in_the_readme_is_what_the_sdk_does() -> None:
    make(ROOT, "table", "CHECK=--check")
