"""``aggregating-worker demo`` tells the truth about the task, in sentences, and ends."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from aggregating_worker.local.demo import Failed, check_items
from tests.conftest import MakeWorker, off_runpod

TASK = """
import os, random, time
from pydantic import BaseModel

class Input(BaseModel):
    items: list[int]

def load():
    pass

def process(item, job):
"""

MakeDemo = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def demo(make_worker: MakeWorker, tmp_path: Path) -> MakeDemo:
    """Begin the demo in a folder of its own, around a task, or a body of ``process`` for items 0 to 2."""

    def begin(task: str) -> "subprocess.Popen[str]":
        folder = make_worker("hostile")
        (folder / "task.py").write_text(task if "import" in task else TASK + f"    {task}\n")
        (folder / "test_input.json").write_text('{"input": {"items": [0, 1, 2]}}')
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "aggregating_worker", "demo"],
            cwd=folder,
            env=off_runpod(TMPDIR=str(tmp_path)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return begin


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Return the exit status, and what was written."""
    with process:
        out, err = process.communicate(timeout=50)
    assert "Traceback" not in err
    return process.returncode, out, err


def test_a_good_task_passes(demo: MakeDemo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a proxy, too, which does not reach this machine."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "example.com")
    status, out, err = ended(demo("return item"))
    assert (status, err) == (0, "")
    assert out.splitlines()[-1].startswith("The stream and the aggregate are the same list")


@pytest.mark.parametrize(
    "body",
    [
        "return [random.random(), time.time(), os.urandom(2).hex()]",
        "yield str(random.random()); yield ' and more'",
        "return 'x' * 1_200_000 if item == 1 else item",
    ],
    ids=["random values", "parts", "too large for the stream"],
)
def test_what_a_good_worker_may_do_passes(demo: MakeDemo, body: str) -> None:
    assert ended(demo(body))[0] == 0


def test_failed_items_fail_with_a_sentence_that_counts_them(demo: MakeDemo) -> None:
    status, _, err = ended(demo("return 6 / (item - 1) if item else {}['absent']"))
    assert status == 1
    assert err == "/run: 2 of 3 items failed. Item 0: KeyError: 'absent'\n"


def test_a_failure_of_the_second_job_alone_fails_too(demo: MakeDemo, tmp_path: Path) -> None:
    status, _, err = ended(demo(f"open({str(tmp_path)!r} + f'/{{item}}', 'x').close()"))
    assert status == 1
    assert err.startswith("/runsync: 3 of 3 items failed. Item 0: FileExistsError")


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("handler.py", "There is no handler.py in this folder: run this in a worker's project.\n"),
        ("test_input.json", "There is no test_input.json in this folder: write a job into it, as the README shows.\n"),
    ],
)
def test_a_file_that_is_missing_is_a_sentence(tmp_path: Path, missing: str, sentence: str) -> None:
    for name in {"handler.py", "test_input.json"} - {missing}:
        (tmp_path / name).write_text("")
    command = [sys.executable, "-m", "aggregating_worker", "demo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", sentence)


@pytest.mark.parametrize(("message", "shown"), [("'absent'", r"KeyError: 'absent'"), ("", "KeyError")])
def test_one_item_is_counted_as_one(message: str, shown: str) -> None:
    failed: Any = {"index": 0, "success": False, "failure": {"type": "KeyError", "message": message}}
    with pytest.raises(Failed, match=rf"^/run: 1 of 1 item failed\. Item 0: {shown}$"):
        check_items("/run", [failed])


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (TASK.replace("pass", "raise OSError('no weights')") + "    return item", "no weights"),
        ("import no_such_module", "no_such_module"),
    ],
    ids=["cannot load", "cannot be imported"],
)
def test_a_worker_that_cannot_start_is_a_sentence_and_the_end_of_its_log(demo: MakeDemo, task: str, words: str) -> None:
    status, out, err = ended(demo(task))
    assert status == 1
    assert err == "The worker ended before it took the job: its log above says why.\n"
    assert words in out


def test_long_values_are_cut_on_the_screen_with_their_size(demo: MakeDemo) -> None:
    status, out, _ = ended(demo("return {'text': 'x' * 50_000, 'vector': [0.5] * 384}"))
    assert status == 0
    assert "... (50,000 characters)" in out
    assert "... (384 in all)" in out
    assert len(out) < 10_000


def test_files_are_saved_and_it_says_where(demo: MakeDemo) -> None:
    status, out, _ = ended(demo(r"return [b'\x89PNG\r\n\x1a\n' + bytes(item), item]"))
    assert status == 0
    words, folder = out.splitlines()[-1].split(", in ")
    assert words == "Files of the results: 3"
    assert sorted(path.name for path in Path(folder).iterdir()) == ["0-0.png", "1-0.png", "2-0.png"]
    assert (Path(folder) / "2-0.png").read_bytes() == b"\x89PNG\r\n\x1a\n" + bytes(2)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("line", ["Starting", "GET  /stream"], ids=["at the start", "with a job in hand"])
def test_ctrl_c_is_a_sentence_and_leaves_no_worker(demo: MakeDemo, line: str) -> None:
    process = demo("return time.sleep(600 * item)")
    assert process.stdout is not None
    assert next(said for said in process.stdout if said.startswith(line))
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    status, _, err = ended(process)
    assert (status, err) == (1, "Stopped, and the worker with it.\n")
    assert psutil.wait_procs(workers, timeout=10)[1] == []
