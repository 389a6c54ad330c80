"""The folder in which a worker starts: ``task.py`` reads and writes there by relative paths, wherever it runs."""

import ast
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from aggregating_worker import start_folder
from aggregating_worker.local import LocalEndpoint
from tests.conftest import Caller, MakeWorker, off_runpod

COPY = (
    "from pathlib import Path; from aggregating_worker.start_folder import copy_of; "
    "print((copy_of(Path()) / 'data').is_symlink())"
)
BOUND = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
"""What has root heed the modes of files."""


@pytest.fixture
def project(make_worker: MakeWorker) -> Path:
    folder = make_worker("relative")
    (folder / "data").mkdir()
    (folder / "data" / "words.txt").write_text("words")
    return folder


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A file on a server."""
    (tmp_path / "far.txt").write_text("far away")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/far.txt"
        server.shutdown()


def items(url: str) -> dict[str, str]:
    """Items of ``relative``, and their results."""
    return {
        "read data/words.txt": "words",
        "write data/words.txt": "written",
        "write data/new.txt": "written",
        "read loaded.txt": "loaded",
        "upload data/new.txt": "simulated_uploaded written",
        f"download {url}": "downloaded_filesfar away",
        "touch made.txt": "made.txt True",
    }


def local_test(project: Path, job: list[str], *before: str, **env: str) -> list[str]:
    line = [*before, sys.executable, "handler.py", "--test_input", str({"input": {"items": job}}).replace("'", '"')]
    env = off_runpod(RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS="1", **env)
    finished = subprocess.run(line, cwd=project, env=env, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    [printed] = re.findall(r"Job result: (.*)", finished.stdout)
    return [envelope["result"] for envelope in ast.literal_eval(printed)["output"]]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix != ".pyc"}


def test_a_local_test_writes_where_it_is_started(project: Path, url: str) -> None:
    assert local_test(project, [*items(url)]) == [*items(url).values()]
    assert {"data/new.txt", "loaded.txt", "made.txt", "simulated_uploaded"} < files(project)


def test_a_worker_of_a_local_endpoint_writes_in_its_own_folder(project: Path, url: str, tmp_path: Path) -> None:
    before = files(project)
    env = {"RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": "1"}
    log = tmp_path / "log"
    with (
        log.open("wb") as output,
        LocalEndpoint(cwd=project, env=env, log=output) as endpoint,
        Caller(endpoint, log) as caller,
    ):
        envelopes = caller.runsync([*items(url)])["output"]
    assert [envelope.get("result", envelope) for envelope in envelopes] == [*items(url).values()]
    assert files(project) == before


def test_a_worker_in_a_folder_that_cannot_be_written_writes_in_its_own(project: Path, url: str, tmp_path: Path) -> None:
    """As in the image. It is gone with the worker, and the task is imported from where it lies."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    before = files(project)
    folders = [project, project / "data"]
    for folder in folders:
        folder.chmod(0o555)
    try:
        results = local_test(project, [*items(url)], *BOUND, TMPDIR=str(temporary), PYTHONDONTWRITEBYTECODE="1")
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert results == [*items(url).values()]
    assert (files(project), (project / "data" / "words.txt").read_text()) == (before, "words")
    assert not [*temporary.iterdir()]


def test_a_folder_that_cannot_be_looked_into_is_linked(project: Path) -> None:
    """As a database's container leaves one."""
    (project / "data").chmod(0)
    try:
        line = [*BOUND, sys.executable, "-c", COPY]
        linked = subprocess.run(line, cwd=project, env=off_runpod(), capture_output=True, text=True, check=True)
    finally:
        (project / "data").chmod(0o755)
    assert linked.stdout == "True\n"


def test_no_copy_of_a_whole_system_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an image starts its worker in ``/``."""
    monkeypatch.chdir("/")
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(start_folder, "copy_of", lambda project: pytest.fail(f"a copy of {project}"))
    with start_folder.writable():
        assert Path.cwd() == Path("/")


def test_a_worker_that_can_write_nowhere_starts_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with start_folder.writable():
        assert Path.cwd() == tmp_path
