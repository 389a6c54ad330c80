"""What a local endpoint is to any worker: none loses a result by it, and none gets another's job."""

import asyncio
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from aggregating_worker import start_folder
from aggregating_worker.local import LocalEndpoint, launch, stops, workers
from aggregating_worker.local.queue import Queue
from tests.conftest import Caller, MakeWorker

IDLE = [sys.executable, "-c", "import signal; signal.pause()"]
START = "runpod.serverless.start({'handler': handler, 'return_aggregate_stream': True})\n"


@contextmanager
def serving(folder: Path, handler: str, **options: Any) -> Iterator[Caller]:
    """Serve a handler in ``folder``, with the SDK that is installed here."""
    (folder / "handler.py").write_text(f"import os, time, runpod\n{handler}\n{START}")
    command = [sys.executable, "-u", "handler.py"]
    with (
        (folder / "worker.log").open("wb") as log,
        LocalEndpoint(command, cwd=folder, log=log, **options) as endpoint,
        Caller(endpoint, folder / "worker.log") as caller,
    ):
        yield caller


@pytest.fixture
def alone() -> Iterator[Caller]:
    """Serve an endpoint whose only worker is the test."""
    with LocalEndpoint(IDLE) as endpoint, Caller(endpoint, Path(os.devnull)) as caller:
        yield caller


def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("command", "error"), [(["no-such-command"], FileNotFoundError), (["no\0command"], ValueError)], ids=str
)
def test_a_command_that_cannot_be_run_is_raised_at_once(command: list[str], error: type[Exception]) -> None:
    with pytest.raises(error), LocalEndpoint(command):
        pass


def test_a_worker_that_blocks_its_loop_loses_nothing(tmp_path: Path) -> None:
    """Of a connection that was closed meanwhile the SDK learns when it posts, and it does not post again."""
    handler = "def handler(job):\n    for item in job['input']['items']:\n        time.sleep(item)\n        yield item"
    with serving(tmp_path, handler) as caller:
        job_id = caller.run([0, 7, 0])
        assert list(caller.stream(job_id)) == [0, 7, 0]
        assert caller.status(job_id)["output"] == [0, 7, 0]


def test_each_worker_runs_in_a_folder_of_its_own_where_it_finds_the_project(tmp_path: Path) -> None:
    (tmp_path / "test_input.json").write_text('{"input": 7}')
    (tmp_path / "beside.py").write_text("VALUE = 5\n")
    (tmp_path / ".runpod_jobs.pkl").write_text("of an old SDK, left over from somewhere else")
    handler = (
        "import beside\n"
        "def handler(job):\n"
        "    open(os.environ['RUNPOD_POD_ID'], 'w').close()\n"
        "    return [os.getcwd(), os.path.exists('.runpod_jobs.pkl'), open('test_input.json').read(), beside.VALUE]"
    )
    with serving(tmp_path, handler, workers=2) as caller:
        folders = {worker.folder for worker in caller.endpoint.workers.running}
        assert len(folders) == 2
        folder, state, text, value = caller.runsync([])["output"]
        assert Path(folder) in folders
        assert (state, json.loads(text), value) == (False, {"input": 7}, 5)
    assert not any(folder.exists() for folder in folders)
    assert {path.name for path in tmp_path.iterdir()} >= {"handler.py", "beside.py", "test_input.json"}
    assert not list(tmp_path.glob("worker-*[0-9]"))


def test_what_a_worker_writes_in_its_folder_does_not_change_the_project(tmp_path: Path) -> None:
    names = ["labels.json", "data/deep/table.csv", "linked.txt", ".env"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("as it was")
    (tmp_path / "linked.txt").unlink()
    (tmp_path / "linked.txt").symlink_to("labels.json")
    (tmp_path / "run.sh").write_text("#!/bin/sh\n")
    (tmp_path / "run.sh").chmod(0o755)
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "model.bin").open("wb") as file:
        file.truncate(start_folder.COPIED + 1)
    (tmp_path / ".git").mkdir()
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "pyvenv.cfg").touch()
    handler = (
        f"names = {names}\n"
        "def handler(job):\n"
        "    read = [open(name).read() for name in names]\n"
        "    for name in names:\n"
        "        open(name, 'w').write('changed')\n"
        "    os.mkdir('data/new')\n"
        "    return read, os.access('run.sh', os.X_OK), [name for name in os.listdir() if os.path.islink(name)]"
    )
    with serving(tmp_path, handler) as caller:
        read, executable, links = caller.runsync([])["output"]
    assert read == ["as it was"] * len(names)
    assert executable
    assert sorted(links) == [".git", "model.bin", "pipe", "python"]
    assert [(tmp_path / name).read_text() for name in names] == ["as it was"] * len(names)
    assert not (tmp_path / "data" / "new").exists()


def test_a_folder_too_large_to_be_copied_is_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that holds the copy does not hold a copy of that."""
    monkeypatch.setattr(start_folder, "ROOM", 2 * start_folder.OWN_BYTES)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "b"))
    for name in ("a/first", "b/second", "c/third", "top"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    folder = start_folder.copy_of(tmp_path)
    assert folder.parent == tmp_path / "b"
    assert [(folder / name).read_text() for name in ("a/first", "b/second", "c/third", "top")]
    assert [path.name for path in sorted(folder.rglob("*")) if path.is_symlink()] == ["second", "third"]
    assert not (folder / "b" / folder.name).exists()


def test_a_relative_command_is_looked_for_where_the_endpoint_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not in this project, which would run another handler than the one that was asked for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "handler.py").write_text(f"import runpod\ndef handler(job):\n    return 'mine'\n{START}")
    with LocalEndpoint([sys.executable, "-u", "handler.py"]) as endpoint, Caller(endpoint, tmp_path) as caller:
        assert caller.runsync([])["output"] == "mine"


def test_a_worker_that_asks_to_be_refreshed_is_replaced_after_its_job(tmp_path: Path) -> None:
    handler = "def handler(job):\n    return {'refresh_worker': job['input']['items'] == [1], 'pid': os.getpid()}"
    with serving(tmp_path, handler) as caller:
        pids = [caller.runsync([number])["output"]["pid"] for number in (0, 1, 2)]
    assert pids[0] == pids[1] != pids[2]


def test_a_worker_that_is_being_started_while_its_endpoint_stops_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    begun, stopping = threading.Event(), threading.Event()
    make = launch.Command.folder

    def folder(command: launch.Command, project: Path) -> Path:
        begun.set()
        assert stopping.wait(30)
        made.append(make(command, project))
        return made[-1]

    async def scenario() -> None:
        pool = workers.Workers(Queue(), launch.Command(IDLE), 1, tmp_path, {}, None)
        pool.start_once()
        assert await asyncio.to_thread(begun.wait, 30)
        killing = asyncio.create_task(pool.kill())
        await asyncio.sleep(0)
        stopping.set()
        await killing
        assert pool.running == []

    monkeypatch.setattr(launch.Command, "folder", folder)
    asyncio.run(scenario())
    [left] = made
    assert not left.exists()


def test_a_worker_that_hears_of_no_stop_is_replaced_once_its_other_jobs_are_done(
    alone: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one on an old SDK: it would lose the jobs that it has in hand beside, and these their results so far."""
    monkeypatch.setattr(stops, "GRACE", 0.1)
    monkeypatch.setattr(stops, "PAUSE", 0.1)
    [worker] = alone.endpoint.workers.running
    ids = [alone.run([number]) for number in range(3)]
    taken = alone.as_worker("GET", "job-take-batch", batch_size=2).json()
    assert [job["id"] for job in taken] == ids[:2]
    alone.post(f"/cancel/{ids[0]}")
    until(lambda: not alone.endpoint.queue.stops.open)
    assert alone.as_worker("GET", "job-take").status_code == 204  # the third is for another worker
    assert not worker.exited.done()
    assert alone.done(ids[1], {"output": [1]}).status_code == 200
    assert worker.exited.result(20) == -signal.SIGKILL
    states = [alone.status(job_id) for job_id in ids]
    assert [state["status"] for state in states] == ["CANCELLED", "COMPLETED", "IN_QUEUE"]
    assert not any("retries" in state for state in states)
    until(lambda: [worker.id for worker in alone.endpoint.workers.running] == ["worker-2"])


def test_a_worker_that_dies_at_its_start_is_tried_again_after_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "AGAIN", 0.5)
    (tmp_path / "broken").touch()
    handler = (
        f"if os.path.exists({str(tmp_path / 'broken')!r}):\n    os._exit(3)\ndef handler(job):\n    return 'mended'"
    )
    with serving(tmp_path, handler, workers=2) as caller:
        until(lambda: caller.get("/health").json()["workers"]["unhealthy"] == 2)
        health = caller.get("/health").json()["workers"]
        assert (health["throttled"], health["ready"]) == (0, 0)
        (tmp_path / "broken").unlink()
        assert caller.runsync([])["output"] == "mended"
        until(lambda: caller.get("/health").json()["workers"]["ready"] == 2)
        assert caller.get("/health").json()["workers"]["unhealthy"] == 0
        assert "worker-1 ended before it asked for a job, with status 3" in caller.log.read_text()


@pytest.mark.parametrize("ending", ["cancelled", "timed out"])
def test_a_worker_that_does_not_stop_a_job_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(stops, "GRACE", 0.5)
    handler = "def handler(job):\n    time.sleep(job['input']['items'][0])\n    return os.getpid()"
    with serving(tmp_path, handler) as caller:
        first = caller.runsync([0])["output"]
        policy = {"executionTimeout": 5_000}
        job_id = caller.post("/run", json={"input": {"items": [600]}, "policy": policy}).json()["id"]
        if ending == "cancelled":
            until(lambda: caller.status(job_id)["status"] == "IN_PROGRESS")
            caller.post(f"/cancel/{job_id}")
        assert caller.runsync([0])["output"] != first
        assert caller.status(job_id)["status"] == ending.upper().replace(" ", "_")


def test_a_worker_that_stops_a_job_is_kept(tmp_path: Path) -> None:
    handler = (
        "import asyncio\n"
        "async def handler(job):\n    await asyncio.sleep(job['input']['items'][0])\n    return os.getpid()"
    )
    with serving(tmp_path, handler) as caller:
        first = caller.runsync([0])["output"]
        job_id = caller.run([600])
        until(lambda: caller.status(job_id)["status"] == "IN_PROGRESS")
        caller.post(f"/cancel/{job_id}")
        until(lambda: not caller.endpoint.queue.stops.open)
        assert caller.runsync([0])["output"] == first


def test_a_job_that_is_tried_again_at_once_is_done_by_the_same_worker(tmp_path: Path) -> None:
    """What told the worker to stop its first run does not stop the second."""
    handler = (
        "import asyncio\n"
        "async def handler(job):\n"
        "    runs.append(job['id'])\n"
        "    await asyncio.sleep(600 if len(runs) == 1 else 1.5)\n"
        "    return len(runs)\n"
        "runs = []"
    )
    with serving(tmp_path, handler) as caller:
        job_id = caller.post("/run", json={"input": {}, "policy": {"executionTimeout": 5_000}}).json()["id"]
        until(lambda: caller.status(job_id)["status"] == "TIMED_OUT")
        caller.post(f"/retry/{job_id}").raise_for_status()
        state = caller.get(f"/status-sync/{job_id}").json()
        assert (state["status"], state["output"], state["workerId"]) == ("COMPLETED", 2, "worker-1")


def test_what_a_worker_says_it_has_in_hand_is_what_it_has_not_stopped(
    alone: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has room for other jobs beside: that it asks for one says nothing."""
    monkeypatch.setattr(stops, "GRACE", 600)
    job_id = alone.run([1])
    alone.take()
    alone.post(f"/cancel/{job_id}")
    for _ in range(stops.TIMES):
        assert alone.as_worker("GET", "job-stop").json() == {"jobsToStop": [job_id]}
    alone.as_worker("GET", "ping", job_id=f"other,{job_id}")
    alone.run([2])
    alone.as_worker("GET", "job-take", job_in_progress=1)
    assert alone.endpoint.queue.stops.open
    alone.as_worker("GET", "ping", job_id="other")
    assert not alone.endpoint.queue.stops.open


def test_a_result_on_its_way_while_its_job_is_cancelled_comes_too_late(alone: Caller) -> None:
    job_id = alone.run([1])
    alone.take()
    half = threading.Event()
    cancelled = threading.Event()

    def body() -> Iterator[bytes]:
        yield b'{"output": '
        half.set()
        assert cancelled.wait(30)
        yield b"[1]}"

    worker = alone.endpoint.workers.running[0]
    url = f"{alone.endpoint.url}/job-done/{worker.id}/{job_id}?gpu=none"
    answers: list[int] = []

    def post() -> None:
        answers.append(httpx2.post(url, content=body(), headers={"Authorization": worker.secret}).status_code)

    posting = threading.Thread(target=post)
    posting.start()
    assert half.wait(30)
    alone.post(f"/cancel/{job_id}")
    cancelled.set()
    posting.join(30)
    assert answers == [404]
    assert alone.status(job_id)["status"] == "CANCELLED"


WORKER_ROUTES = [
    ("GET", "/job-take/{worker}?gpu=none"),
    ("GET", "/job-take-batch/{worker}?batch_size=100"),
    ("GET", "/job-stop/{worker}?gpu=none"),
    ("POST", "/job-stream/{worker}/{job}?gpu=none"),
    ("POST", "/job-done/{worker}/{job}?gpu=none"),
    ("GET", "/ping/{worker}"),
]


@pytest.mark.parametrize(("method", "path"), WORKER_ROUTES)
def test_a_route_for_workers_wants_the_workers_own_secret(method: str, path: str) -> None:
    with LocalEndpoint(IDLE, workers=2, api_key="key") as endpoint, Caller(endpoint, Path(os.devnull)) as caller:
        mine, other = endpoint.workers.running
        assert mine.secret != other.secret
        headers = {"Authorization": "key"}
        job_id = caller.http.post("/run", json={"input": {}}, headers=headers).json()["id"]
        for worker in ("evil", mine.id):
            for given in ("", "key", "Bearer key", other.secret, mine.secret[:-1], mine.secret + "x"):
                url = path.format(worker=worker, job=job_id)
                answer = caller.http.request(method, url, content='{"output": 1}', headers={"Authorization": given})
                assert answer.status_code == 401
        state = caller.http.get(f"/status/{job_id}", headers=headers).json()
        assert state == {"id": job_id, "status": "IN_QUEUE"}
        if job_id in path.format(worker="", job=job_id):
            caller.http.get(f"/job-take/{other.id}", headers={"Authorization": other.secret})
            url = path.format(worker=mine.id, job=job_id)
            answer = caller.http.request(method, url, content='{"output": 1}', headers={"Authorization": mine.secret})
            assert answer.status_code == 404


def test_a_secret_ends_with_its_worker(alone: Caller) -> None:
    [worker] = alone.endpoint.workers.running
    alone.as_worker("GET", "ping")
    os.kill(worker.process.pid, signal.SIGKILL)
    worker.exited.result(20)
    url = f"{alone.endpoint.url}/ping/{worker.id}"
    assert httpx2.get(url, headers={"Authorization": worker.secret}).status_code == 401


def test_a_worker_on_a_machine_with_a_key_of_runpods_own_is_let_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK prefers what ``runpod config`` has written to what the platform gives it."""
    home = tmp_path / "home"
    (home / ".runpod").mkdir(parents=True)
    (home / ".runpod" / "config.toml").write_text('[default]\napi_key = "of the account"\n')
    monkeypatch.setenv("HOME", str(home))
    with serving(tmp_path, "def handler(job):\n    return 'let in'") as caller:
        assert caller.runsync([])["output"] == "let in"


ECHO = "from pydantic import BaseModel\n\nclass Input(BaseModel):\n    items: list[str]\n\ndef load():\n    pass\n"


def test_a_changed_task_takes_over_once_the_jobs_in_hand_are_done(
    make_worker: MakeWorker, tmp_path: Path, fifo: Path
) -> None:
    project = make_worker("hostile")
    old = ECHO + "\ndef process(item, job):\n    return 'old ' + (open(item).read() if item[:1] == '/' else item)\n"
    (project / "task.py").write_text(old)
    with (
        (tmp_path / "worker.log").open("wb") as log,
        LocalEndpoint(cwd=project, log=log, reload=True) as endpoint,
        Caller(endpoint, tmp_path / "worker.log") as caller,
    ):
        assert caller.runsync(["a"])["output"][0]["result"] == "old a"
        [worker] = endpoint.workers.running
        in_hand = caller.run([str(fifo)])
        until(lambda: caller.status(in_hand)["status"] == "IN_PROGRESS")

        new = old.replace("old", "new").replace("    items", "    shout: bool = True\n    items")
        (project / "task.py").write_text(new)
        until(lambda: worker.outdated)
        next_job = caller.run(["b"])
        assert not worker.exited.done()
        fifo.write_text("c")
        assert [chunk["result"] for chunk in caller.stream(in_hand)] == ["old c"]
        assert [chunk["result"] for chunk in caller.stream(next_job)] == ["new b"]
        assert "shout" in caller.http.get(f"{endpoint.page_url}form").json()["schema"]["properties"]


def test_a_task_that_cannot_start_is_tried_again_when_it_has_changed(make_worker: MakeWorker, tmp_path: Path) -> None:
    project = make_worker("hostile")
    good = (project / "task.py").read_text()
    with (
        (tmp_path / "worker.log").open("wb") as log,
        LocalEndpoint(cwd=project, log=log, reload=True) as endpoint,
        Caller(endpoint, tmp_path / "worker.log") as caller,
    ):
        assert caller.runsync(["a"])["status"] == "COMPLETED"
        (project / "task.py").write_text("def process(item, job:\n")
        until(lambda: not endpoint.workers.alive)
        job_id = caller.run(["b"])
        assert (tmp_path / "worker.log").read_text().count(r"task.py cannot be imported\nTraceback") == 1
        (project / "task.py").write_text(good)
        assert [chunk["result"] for chunk in caller.stream(job_id)] == ["b"]


def test_what_is_not_the_workers_restarts_none(make_worker: MakeWorker, tmp_path: Path) -> None:
    project = make_worker("hostile")
    (project / "docs").mkdir()
    with LocalEndpoint(cwd=project, reload=True) as endpoint, Caller(endpoint, Path(os.devnull)) as caller:
        assert caller.runsync(["a"])["status"] == "COMPLETED"
        [first] = endpoint.workers.running
        for name in ("results.jsonl", "docs/conf.py", "tests/tasks/hostile.py", "README.md"):
            (project / name).write_text("")
        (project / "labels.json").write_text("{}")
        until(lambda: first.exited.done())
        until(lambda: [worker.id for worker in endpoint.workers.running if worker.ready] == ["worker-2"])
