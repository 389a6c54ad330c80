"""Yours: what the workers in your tests are given."""

import pytest


@pytest.fixture(scope="session")
def worker_env() -> dict[str, str]:
    """Return variables for the workers in the tests: a smaller model's name, a stand-in's address."""
    return {}
