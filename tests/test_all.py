"""Every promise of a baked project. It takes longest, so its name has it begin first; the other files run beside it."""

import pytest

from tests.conftest import Bake, make


def test_the_baked_project_passes_its_own_lint_and_suite(bake: Bake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "4")  # most of its tests wait, for workers to start above all
    make(bake(), "lint", "test-all")
