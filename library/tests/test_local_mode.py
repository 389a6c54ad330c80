"""The modes in which the SDK only calls the handler, and its development server: through ``python handler.py``."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from aggregating_worker.intake.mode import find_mode
from aggregating_worker.refusal import Refused
from tests.conftest import MakeWorker, off_runpod

Start = Callable[..., "subprocess.CompletedProcess[str]"]

STUBBORN = """
import asyncio
from contextlib import suppress

from tests.tasks.hostile import Input, load


async def process(item, job):
    while item == "stays":
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
    return item
"""

HALF = """
import asyncio

from tests.tasks.hostile import Input, load


async def process(item, job):
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        {word} "half"
"""


@pytest.fixture(scope="module")
def hostile(make_worker: MakeWorker) -> Path:
    return make_worker("hostile")


@pytest.fixture
def start(hostile: Path) -> Start:
    """Run ``python handler.py`` to its end."""

    def run(*arguments: str, folder: Path = hostile, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "handler.py", *arguments],
            cwd=folder,
            env=off_runpod(**env),
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def result(finished: "subprocess.CompletedProcess[str]") -> Any:
    """Return what the SDK prints as the job's result."""
    assert finished.returncode == 0, finished.stdout + finished.stderr
    [printed] = re.findall(r"Job result: (.*)", finished.stdout)
    return json.loads(printed.replace("'", '"').replace("True", "true"))["output"]


def envelopes(*values: str) -> list[dict[str, Any]]:
    return [{"index": index, "success": True, "result": value} for index, value in enumerate(values)]


def test_the_local_test_prints_the_aggregated_list(start: Start, hostile: Path) -> None:
    """A generator, of whatever kind, would be printed as ``<generator object>`` with exit status 0."""
    (hostile / "test_input.json").write_text('{"input": {"items": ["a", "b"]}}')
    assert result(start()) == envelopes("a", "b")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--test_input", '{"input": {"items": ["a", "b"]}}'],
        ['--test_input={"input": {"items": ["a", "b"]}}'],
        ['--test_in={"id": "mine", "input": {"items": ["a", "b"]}}'],
    ],
    ids=["apart", "joined", "abbreviated, with an id"],
)
def test_a_test_input_may_be_given_in_any_of_the_parsers_forms(start: Start, arguments: list[str]) -> None:
    assert result(start(*arguments)) == envelopes("a", "b")


def test_a_test_input_wins_over_the_production_variables(start: Start) -> None:
    """The SDK's own order: the mode must not be guessed from the environment alone."""
    finished = start(
        '--test_input={"input": {"items": ["a"]}}', RUNPOD_WEBHOOK_GET_JOB="http://127.0.0.1:9/job-take/$ID"
    )
    assert result(finished) == envelopes("a")


def test_a_job_without_items_exits_1_with_a_sentence(start: Start) -> None:
    finished = start('--test_input={"input": {"items": []}}')
    assert finished.returncode == 1
    assert "failed with error: No items provided\n" in finished.stdout
    assert "Traceback" not in finished.stdout + finished.stderr


def test_a_bad_setting_stops_the_start_with_a_sentence(start: Start) -> None:
    finished = start(LOOKAHEAD="none")
    assert finished.returncode == 1
    assert finished.stderr.startswith("Check the environment: LOOKAHEAD should be a valid integer")
    assert finished.stderr.count("\n") == 1


def test_a_misspelt_setting_is_a_warning_at_the_start(start: Start) -> None:
    finished = start('--test_input={"input": {"items": ["a"]}}', ITEM_CONCURENCY="1")
    assert result(finished) == envelopes("a")
    assert "WARN   | Check the environment: there is no setting ITEM_CONCURENCY; did you mean" in finished.stdout


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--test_input={", "--test_input is not valid JSON"),
        ("--test_input=[1]", "--test_input must be a JSON object"),
        ("--rp_log_level=LOUD", "--rp_log_level LOUD: choose one of"),
        ("--rp_debugger", "--rp_debugger does not work with aggregated output"),
    ],
)
def test_what_the_sdk_would_answer_with_a_traceback_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, argument: str, sentence: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["handler.py", argument])
    with pytest.raises(Refused, match=sentence):
        find_mode()


def test_a_test_input_file_that_is_not_json_is_named(start: Start, make_worker: MakeWorker) -> None:
    folder = make_worker("hostile")
    for content in (b"{'input': 1}", '{"input": {"items": ["é"]}}'.encode("latin-1")):
        (folder / "test_input.json").write_bytes(content)
        finished = start(folder=folder)
        assert (finished.returncode, finished.stderr.count("\n")) == (1, 1)
        assert finished.stderr.startswith("test_input.json is not valid JSON: ")


def test_a_load_that_fails_stops_the_local_test(start: Start, make_worker: MakeWorker) -> None:
    finished = start(folder=make_worker("unloadable"))
    assert finished.returncode == 1
    assert finished.stderr == "load() in task.py failed: FileNotFoundError: the model is not there\n"


def test_a_call_that_never_returns_does_not_keep_the_local_test_alive(start: Start, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    job = json.dumps({"input": {"items": ["a", {"read": str(tmp_path / "fifo")}]}})
    finished = start(f"--test_input={job}", ITEM_TIMEOUT="0.2")
    assert finished.returncode == 1
    assert "TimeoutError" in finished.stdout


def test_nor_does_one_that_never_accepts_cancellation(start: Start, make_worker: MakeWorker) -> None:
    folder = make_worker("hostile")
    (folder / "task.py").write_text(STUBBORN)
    finished = start('--test_input={"input": {"items": ["a", "stays"]}}', folder=folder, ITEM_TIMEOUT="0.2")
    assert finished.returncode == 1
    assert finished.stderr.startswith("1 of 2 items failed. Item 1: TimeoutError: ")


@pytest.mark.parametrize("word", ["return", "yield"])
def test_what_an_item_over_its_time_returns_when_it_is_cancelled_is_no_result(
    start: Start, make_worker: MakeWorker, word: str
) -> None:
    """It may be half of one."""
    folder = make_worker("hostile")
    (folder / "task.py").write_text(HALF.format(word=word))
    job = json.dumps({"input": {"items": [0] * 8}})
    finished = start(f"--test_input={job}", folder=folder, ITEM_TIMEOUT="0.2")
    assert finished.stderr.startswith("8 of 8 items failed. Item 0: TimeoutError: ")


@pytest.mark.parametrize("chunk_size", ["1", "2"])
def test_items_that_fail_are_printed_with_the_others_and_counted_with_exit_status_1(
    start: Start, chunk_size: str
) -> None:
    """The SDK's own status is 0: a check that runs ``handler.py`` would pass on a task that fails on everything."""
    job = json.dumps({"input": {"items": ["a", "raise", "raise"]}})
    finished = start(f"--test_input={job}", CHUNK_SIZE=chunk_size)
    assert finished.returncode == 1
    assert finished.stderr.startswith("2 of 3 items failed. Item 1: ")
    [printed] = re.findall("Job result: .*", finished.stdout)
    assert (printed.count("'success': True"), printed.count("'success': False")) == (1, 2)


def test_a_local_test_that_does_not_end_says_that_it_goes_on_and_if_interrupted_has_not_passed(
    make_worker: MakeWorker, fifo: Path, tmp_path: Path, interruptible: None
) -> None:
    log = tmp_path / "log"
    job = json.dumps({"input": {"items": [{"read": str(fifo)}]}})
    main = "import runpy; from aggregating_worker import worker; worker.EVERY = 0.01; "
    main += "runpy.run_path('handler.py', run_name='__main__')"
    command = [sys.executable, "-u", "-c", main, "--test_input", job]
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, cwd=make_worker("hostile"), env=off_runpod(), stdout=output, stderr=output
        ) as process,
    ):
        while "Not done after" not in log.read_text():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 1
    assert log.read_text().splitlines()[-1] == "Stopped."
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import absent", "ModuleNotFoundError: No module named 'absent'"),
        ("def", "SyntaxError: "),
        ("raise SystemExit(0)", "SystemExit: 0"),
    ],
)
def test_a_task_that_cannot_be_imported_is_a_sentence(
    start: Start, make_worker: MakeWorker, text: str, why: str
) -> None:
    folder = make_worker("hostile")
    (folder / "task.py").write_text(text)
    finished = start(folder=folder)
    assert finished.returncode == 1
    assert finished.stderr.startswith(f"task.py cannot be imported: {why}")


@contextmanager
def serving(folder: Path, free_port: int, *arguments: str, **env: str) -> Iterator[httpx2.Client]:
    """Run one of the SDK's own servers in ``folder``."""
    with (
        subprocess.Popen(
            [sys.executable, "-u", "handler.py", *arguments],
            cwd=folder,
            env=off_runpod(**env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as server,
        httpx2.Client(base_url=f"http://127.0.0.1:{free_port}", timeout=30) as client,
    ):
        assert server.stdout is not None
        try:
            assert any("Uvicorn running on" in line for line in server.stdout)
            yield client
        finally:
            server.kill()


def test_the_sdks_realtime_route_answers_with_the_aggregate(hostile: Path, free_port: int) -> None:
    with serving(hostile, free_port, RUNPOD_REALTIME_PORT=str(free_port), RUNPOD_ENDPOINT_ID="me") as client:
        got = client.post("/me/realtime", json={"id": "1", "input": {"items": ["a"]}}).json()
    assert got["output"] == envelopes("a")


def test_the_sdks_development_server_answers_with_the_aggregate_and_fails_a_job_that_cannot_start(
    hostile: Path, free_port: int
) -> None:
    with serving(hostile, free_port, "--rp_serve_api", f"--rp_api_port={free_port}") as client:

        def answers(items: list[Any]) -> Iterator[dict[str, Any]]:
            """Yield the answer of each route; in all but the first, the job was sent to /run before."""
            job = {"input": {"items": items}}
            yield client.post("/runsync", json=job).json()
            for route in ("status", "stream"):
                job_id = client.post("/run", json=job).json()["id"]
                yield client.post(f"/{route}/{job_id}").json()

        runsync, status, stream = answers(["a", "error key"])
        assert [each["status"] for each in (runsync, status, stream)] == ["COMPLETED"] * 3
        assert runsync["output"] == status["output"] == [chunk["output"] for chunk in stream["stream"]]
        assert runsync["output"][:1] == envelopes("a")
        for refused in answers([]):
            del refused["id"]
            assert refused == {"status": "FAILED", "error": "No items provided"}


def test_a_long_text_is_printed_by_its_beginning_and_its_length(start: Start) -> None:
    """A picture in base64 would fill the terminal. What is returned is whole."""
    finished = start('--test_input={"input": {"items": [{"bytes": 300000}, "a"]}}')
    assert finished.returncode == 0
    assert "… (300,000 characters)" in finished.stdout
    assert "'result': 'a'" in finished.stdout
    assert len(finished.stdout) < 5_000


def test_a_task_that_uses_the_gpu_when_it_is_imported_is_refused(start: Start, make_worker: MakeWorker) -> None:
    """The worker imports it, too, and would hold memory of the GPU."""
    folder = make_worker("hostile")
    with (folder / "task.py").open("a") as task:
        task.write("\n\nfrom types import SimpleNamespace\n\n")
        task.write("sys.modules['torch'] = SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: True))\n")
    finished = start(folder=folder)
    assert finished.returncode == 1
    assert finished.stderr.startswith("task.py uses the GPU when it is imported: do that in load().")
