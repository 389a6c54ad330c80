"""Bakes, through cookiecutter's API, from a copy of what git would hand to a user."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cookiecutter.main import cookiecutter

ROOT = Path(__file__).parents[1]
QUESTIONS = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))
STARTING_POINTS = QUESTIONS["starting_point"]

Bake = Callable[..., Path]


def make(folder: Path, *targets: str) -> None:
    """Run make as a user would: not under the make that runs these tests."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    finished = subprocess.run(
        ["make", *targets], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    print(finished.stdout[-8_000:])
    assert finished.returncode == 0


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Name a virtual environment for the bakes of a module: what all need is installed, and its types read, once."""
    folder = tmp_path_factory.mktemp("environment")
    with pytest.MonkeyPatch.context() as here:
        here.setenv("MYPY_CACHE_DIR", str(folder / "types"))
        yield f"VENV={folder / '.venv'}"


def required(message: str) -> None:
    """Skip a test for want of something on this machine, or fail it where all must run (``REQUIRE_ALL``)."""
    pytest.fail(message) if os.environ.get("REQUIRE_ALL") else pytest.skip(message)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    """Return once ``condition()`` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the template without what git ignores: caches must not reach a bake."""
    folder = tmp_path_factory.mktemp("template")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def bake(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Bake:
    """Bake with the given answers, the others at their defaults; return the project's folder."""

    def run(output: Path | None = None, **answers: str) -> Path:
        unknown = answers.keys() - {name for name in QUESTIONS if not name.startswith("_")}
        assert not unknown, f"cookiecutter would silently ignore {unknown}"
        output = output or tmp_path_factory.mktemp("bake")
        config = {"replay_dir": str(output / ".replay"), "cookiecutters_dir": str(output / ".cookiecutters")}
        made = cookiecutter(
            str(template), no_input=True, output_dir=str(output), default_config=config, extra_context=answers
        )
        return Path(made)

    return run
