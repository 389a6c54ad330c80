"""The promises, as a project runs them: on a task of every kind, and on a project that keeps one of them badly."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import HANDLER, off_runpod

TASK = """
from pydantic import BaseModel

class Input(BaseModel):
    items: list[int]

def load():
    pass

"""
RESULT = "{'item': item, 'text': 'x' * 200}"
KINDS = {
    "with context": "def process(item, job, context):\n    return {'job': context.job_id, 'text': 'x' * 200}\n",
    "async generator": "async def process(item, job):\n    yield 'x' * 100\n    yield str(item) * 100\n",
    "async batch": f"async def process_batch(items, job, contexts):\n    return [{RESULT} for item in items]\n",
}
"""What no starting point has; their own tests have the others."""
PLAIN = f"def process(item, job):\n    return {RESULT}\n"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the promises in a project around a function."""

    def run(function: str, *arguments: str, job: object = None) -> "subprocess.CompletedProcess[str]":
        shutil.copy(HANDLER, tmp_path)
        (tmp_path / "task.py").write_text(TASK + function)
        job = job or {"input": {"items": [1, 2, 3]}}
        (tmp_path / "test_input.json").write_text(json.dumps(job) if isinstance(job, dict) else str(job))
        (tmp_path / "test_promises.py").write_text("from aggregating_worker.testing.promises import *\n")
        (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers -rs\ntimeout = 100\n")
        line = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
        return subprocess.run(line, cwd=tmp_path, env=off_runpod(), capture_output=True, text=True, timeout=200)

    return run


@pytest.mark.parametrize("function", KINDS.values(), ids=KINDS)
def test_another_kind_of_task_keeps_them(run: Run, function: str) -> None:
    done = run(function)
    assert done.returncode == 0, done.stdout
    assert "13 passed, 2 skipped" in done.stdout
    assert "There is no requirements.txt here" in done.stdout


def test_an_item_of_the_test_input_that_fails_is_named_with_its_reason(run: Run) -> None:
    done = run("def process(item, job):\n    return 1 / (item - 2)\n", "-k", "every_item")
    assert done.returncode == 1
    assert "1 of 3 items of test_input.json failed.\n  item 1: ZeroDivisionError: division by zero" in done.stdout
    assert "| Item 1 failed\nTraceback (most recent call last):\n" in done.stdout  # the log is no JSON here
    assert "\nE  " not in done.stdout  # as in a traceback of pytest's


@pytest.mark.parametrize(
    ("job", "sentence"),
    [("{", "test_input.json is not a job"), ({"input": {"items": []}}, "No items provided")],
    ids=["no JSON", "no items"],
)
def test_a_test_input_that_is_no_job_is_a_sentence(run: Run, job: object, sentence: str) -> None:
    done = run(PLAIN, "-k", "every_item", job=job)
    assert done.returncode == 1
    assert sentence in done.stdout
    assert "Traceback" not in done.stdout


def test_results_that_differ_by_chance_agree_by_their_shape(run: Run) -> None:
    random = "import random\ndef process(item, job):\n    return {'score': random.random(), 'words': ['a'] * item}\n"
    assert run(random, "-k", "agree").returncode == 0


def test_results_whose_shape_depends_on_the_mode_do_not_agree(run: Run) -> None:
    local = "import os\ndef process(item, job):\n    return 'RUNPOD_POD_ID' in os.environ and 'production'\n"
    assert run(local, "-k", "agree").returncode == 1


def test_a_worker_that_cannot_load_fails_with_its_log(run: Run) -> None:
    done = run("def load():\n    raise OSError('no weights')\n" + PLAIN, "-k", "every_item")
    assert done.returncode == 1
    assert "The worker has ended at its start" in done.stdout
    assert "no weights" in done.stdout


def test_what_cannot_be_tried_says_so(run: Run) -> None:
    done = run("def process(item, job):\n    return item\n", "-k", "small_response")
    assert done.returncode == 0
    assert "a failure in place of one would not be shorter" in done.stdout


def test_a_module_beside_the_task_sees_the_one_that_runs(run: Run, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("import task\n\ndef made():\n    return [task.loaded]\n")
    function = "import beside\nloaded = 0\ndef load():\n    global loaded\n    loaded = 1\n\n"
    assert run(function + "def process(item, job):\n    return beside.made()\n", "-k", "costs").returncode == 0


def test_more_items_than_the_task_takes_are_a_reason_to_skip(run: Run) -> None:
    done = run("MAX_ITEMS = 3\n" + PLAIN, "-k", "costs or cancelled or small_response")
    assert "5 skipped" in done.stdout
    assert "items are too many for one job" in done.stdout


def test_a_project_can_leave_them_out(run: Run) -> None:
    done = run(PLAIN, "-m", "not promise")
    assert "15 deselected" in done.stdout
