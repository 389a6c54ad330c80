"""What holds for the machinery's tests, and not for yours."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let any warning fail a test of the machinery; yours may use what warns."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.filterwarnings("error"))


@pytest.fixture
def fifos(tmp_path: Path) -> Iterator[list[Path]]:
    """Keep an item each busy until the test writes to them, or is over."""
    paths = [tmp_path / f"fifo-{number}" for number in range(6)]
    for path in paths:
        os.mkfifo(path)
    yield paths
    for path in paths:
        os.close(os.open(path, os.O_RDWR))
