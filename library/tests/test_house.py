"""The rooms of the library, and the one direction in which they import one another."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import LIBRARY

SOURCE = LIBRARY / "src" / "aggregating_worker"
ROOMS = """
testing local deploy client schema worker intake job calls request validator process delivery settings outcome log
before_sdk start_folder context failed model refusal proxies sentence
""".split()
"""From the top to the bottom: a room imports only from those below."""
OTHER_SIDE = {"testing", "local", "client", "deploy"}
EXTRAS = {"httpx2", "pytest", "rich", "stamina", "starlette", "uvicorn", "watchfiles"}
FACE = {"__init__", "__main__"}
"""Files that are no room."""


def imports(file: Path) -> Iterator[str]:
    """Yield the modules that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "aggregating_worker":
            yield from (f"aggregating_worker.{name.name}" for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def room(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


FILES = sorted(file for file in SOURCE.rglob("*.py") if room(file) not in FACE)


def test_every_file_is_in_a_room() -> None:
    assert {room(file) for file in FILES} == set(ROOMS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_a_room_imports_only_from_those_below_it(file: Path) -> None:
    ours = [name.split(".")[1] for name in imports(file) if name.startswith("aggregating_worker.")]
    above = ROOMS[: ROOMS.index(room(file))]
    assert [name for name in ours if name in above] == []


@pytest.mark.parametrize(
    "file", [file for file in FILES if room(file) not in OTHER_SIDE], ids=lambda file: str(file.relative_to(SOURCE))
)
def test_the_workers_side_needs_no_extra(file: Path) -> None:
    assert [name for name in imports(file) if name.split(".")[0] in EXTRAS] == []
