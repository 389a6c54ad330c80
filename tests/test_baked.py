"""What a user of each bake would run: it is installed from its locks and its wheel."""

import pytest

from tests.conftest import STARTING_POINTS, Bake, make


@pytest.mark.parametrize("starting_point", STARTING_POINTS)
def test_a_bake_passes_its_own_lint_and_tests(bake: Bake, starting_point: str, venv: str) -> None:
    """In the environment of the one before, if there was one; what its image lacks is found all the same."""
    make(bake(starting_point=starting_point), "lint", "test", venv)
