"""What a user of each bake would run."""

import pytest

from tests.conftest import STARTING_POINTS, Bake, make

OF_EACH = "tests/test_task.py tests/test_settings.py tests/test_deploy.py"
"""The tests of what a starting point brings; the others' subject is the same file in every bake (``test_bake.py``)."""


@pytest.mark.parametrize("starting_point", STARTING_POINTS[1:])
def test_another_starting_point_passes_its_own_lint_and_tests(
    bake: Bake, starting_point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "1")  # what takes longest is to import PyTorch
    make(bake(starting_point=starting_point), "lint", "test-all", f"TESTS={OF_EACH}")
