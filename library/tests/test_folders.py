"""``context.folder``: an item's own, there until its files are read, and never left behind."""

import asyncio
import base64
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from aggregating_worker.context import Context
from aggregating_worker.process.folders import Folders
from tests.conftest import Caller, MakeWorker, Serve, off_runpod
from tests.engine import make, run
from tests.test_processes import eventually

TASKS = ["folders", "folders_async", "folders_batch"]
PLACES = pytest.mark.parametrize("task", TASKS)


@pytest.fixture
def folders(serve: Serve, tmp_path: Path) -> Callable[..., Caller]:
    """Serve a task whose folders are made in ``tmp_path``."""
    return lambda task, **env: serve(task, TMPDIR=str(tmp_path), **env)


def left(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith("aggregating-worker-")]


def logs(state: dict[str, Any]) -> list[str]:
    return [base64.b64decode(one["result"]["log"]["data"]).decode() for one in state["output"]]


@PLACES
@pytest.mark.parametrize("processes", ["0", "1"])
def test_100_items_that_each_write_one_fixed_name_have_their_own(
    folders: Callable[..., Caller], tmp_path: Path, task: str, processes: str
) -> None:
    state = folders(task, PROCESSES=processes, BATCH_SIZE="7").runsync([*range(100)])
    assert logs(state) == [f"{index} " * 4 for index in range(100)]
    assert len({one["result"]["folder"] for one in state["output"]}) == 100
    assert left(tmp_path) == []


@PLACES
def test_jobs_side_by_side_leave_nothing_whether_items_fail_or_not(
    folders: Callable[..., Caller], tmp_path: Path, task: str
) -> None:
    caller = folders(task)
    items = [*(["raise", {"picture": "a.png"}] * 10), *range(5)]
    with ThreadPoolExecutor(8) as callers:
        states = [*callers.map(lambda _: caller.runsync(items), range(8))]
    for state in states:
        assert state["status"] == "COMPLETED", (state, caller.log.read_text())
        assert [one["success"] for one in state["output"]] == [False, True] * 10 + [True] * 5
    assert left(tmp_path) == []


@PLACES
@pytest.mark.parametrize("gpus", [{}, {"CUDA_VISIBLE_DEVICES": "0,1"}], ids=["forked", "started"])
def test_what_a_process_leaves_that_ends_is_removed_and_each_attempt_has_its_own(
    folders: Callable[..., Caller], tmp_path: Path, task: str, gpus: dict[str, str]
) -> None:
    state = folders(task, **gpus).runsync([0, "die", 2, 3])
    assert [one["success"] for one in state["output"]] == [True, False, True, True]
    del state["output"][1]
    assert logs(state) == [f"{index} " * 4 for index in (0, 2, 3)]
    eventually(lambda: not left(tmp_path))


@PLACES
@pytest.mark.parametrize("processes", ["0", "1"])
def test_what_a_call_leaves_that_runs_over_its_time_is_removed(
    folders: Callable[..., Caller], tmp_path: Path, task: str, processes: str
) -> None:
    if processes == "0" and task != "folders_async":
        pytest.skip("nothing can end it")
    caller = folders(task, ITEM_TIMEOUT="0.3", PROCESSES=processes, BATCH_SIZE="1")
    [one] = caller.runsync(["rest"])["output"]
    assert one["failure"]["type"] == "TimeoutError"
    eventually(lambda: not left(tmp_path))


@PLACES
def test_what_a_cancelled_job_leaves_is_removed(folders: Callable[..., Caller], tmp_path: Path, task: str) -> None:
    caller = folders(task)
    job_id = caller.run(["rest"])
    eventually(lambda: len(left(tmp_path)) == 1)
    caller.post(f"/cancel/{job_id}")
    eventually(lambda: not left(tmp_path))


@PLACES
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.usefixtures("interruptible")
def test_a_worker_that_is_ended_leaves_nothing(
    make_worker: MakeWorker, tmp_path: Path, task: str, ending: signal.Signals
) -> None:
    """What has forked the process removes what that leaves."""
    job = '{"input": {"items": ["rest"]}}'
    line = [sys.executable, "handler.py", "--test_input", job]
    with subprocess.Popen(
        line, cwd=make_worker(task), env=off_runpod(TMPDIR=str(tmp_path)), stdout=subprocess.DEVNULL
    ) as process:
        eventually(lambda: len(left(tmp_path)) == 1)
        process.send_signal(ending)
    eventually(lambda: not left(tmp_path))


def test_an_event_loop_is_not_held_up_by_what_is_removed(folders: Callable[..., Caller], tmp_path: Path) -> None:
    """The folders are removed in threads, and the calls end only then."""
    state = folders("folders_async").runsync([*range(200)])
    assert logs(state) == [f"{index} " * 4 for index in range(200)]
    assert left(tmp_path) == []


def test_a_task_that_asks_for_none_makes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: pytest.fail("made"))
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: pytest.fail("removed"))
    bodies = asyncio.run(run(make(lambda item, job, context: context.index), [1, 2, 3]))
    assert [body["result"] for body in bodies] == [0, 1, 2]


def test_all_threads_of_an_item_are_given_the_same() -> None:
    context = Context("job", 0, {})
    barrier = threading.Barrier(8)

    def ask(_: int) -> Path:
        barrier.wait()
        return context.folder

    with ThreadPoolExecutor(8) as threads:
        [folder] = {*threads.map(ask, range(8))}
    assert folder.is_dir()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()


def test_a_folder_that_cannot_be_made_is_its_items_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", full)

    def process(item: str, job: Any, context: Context) -> str:
        return str(context.folder) if item == "ask" else item

    first, second = asyncio.run(run(make(process), ["ask", "none"]))
    assert first["failure"] == {"type": "OSError", "message": "[Errno 28] No space left on device"}
    assert second["result"] == "none"


def test_what_processes_have_left_is_found_and_no_pattern_of_theirs_kept(tmp_path: Path) -> None:
    folders = Folders(str(tmp_path / "of[a]"))
    (tmp_path / "of[a]-7-mine").mkdir()
    (tmp_path / "ofa-7-theirs").mkdir()
    with mock.patch("re.compile", side_effect=AssertionError("it would be kept for each process")):
        assert folders.of(7).found() == [tmp_path / "of[a]-7-mine"]
        assert folders.of(8).found() == Folders(str(tmp_path / "none" / "of")).found() == []
