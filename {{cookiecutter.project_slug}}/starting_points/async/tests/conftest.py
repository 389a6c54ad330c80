"""Yours: what the workers in your tests are given."""

import pytest


@pytest.fixture(scope="session")
def worker_env() -> dict[str, str]:
    """Have the sample in ``task.py`` answer, whatever service is set here."""
    return {"UPSTREAM_URL": ""}
