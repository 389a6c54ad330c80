"""The local endpoint answers as Runpod does: its shapes, its limits, its refusals, to the SDK's own clients too."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import runpod

from endpoint.local import LocalEndpoint
from endpoint.local.queue import Queue
from tests.conftest import PROJECT, Caller, Serve

IDLE = [sys.executable, "-c", "import signal; signal.pause()"]
"""A command that never polls: a queue of its own for whoever tests it."""


@pytest.fixture(scope="module")
def echo(serve: Serve) -> Caller:
    return serve("hostile")


@pytest.fixture(scope="module")
def quiet() -> Iterator[Caller]:
    with LocalEndpoint(IDLE) as endpoint, Caller(endpoint, Path(os.devnull)) as caller:
        yield caller


def take(caller: Caller, worker: str = "mine") -> dict[str, Any]:
    job: dict[str, Any] = caller.get(f"/job-take/{worker}?gpu=none&job_in_progress=0").json()
    return job


def done(caller: Caller, job_id: str, body: Any, worker: str = "mine") -> httpx.Response:
    return caller.post(f"/job-done/{worker}/{job_id}?gpu=none&isStream=false", content=json.dumps(body))


def test_run_status_and_stream_have_the_platforms_shapes(echo: Caller) -> None:
    submitted = echo.post("/run", json={"input": {"items": ["a"]}}).json()
    assert submitted == {"id": submitted["id"], "status": "IN_QUEUE"}
    assert submitted["id"].endswith("-u1")
    assert list(echo.stream(submitted["id"])) == [{"index": 0, "success": True, "result": "a"}]
    state = echo.status(submitted["id"])
    assert state.keys() == {"id", "status", "output", "delayTime", "executionTime", "workerId"}
    assert isinstance(state["delayTime"], int)
    assert isinstance(state["executionTime"], int)
    drained = echo.get(f"/stream/{submitted['id']}").json()
    assert (drained["status"], drained["stream"]) == ("COMPLETED", [])


def test_runsync_answers_with_the_state_when_its_wait_has_passed(quiet: Caller) -> None:
    state = quiet.post("/runsync?wait=1000", json={"input": {"items": [1]}}).json()
    assert state["id"].startswith("sync-")
    assert state["status"] == "IN_QUEUE"
    assert quiet.post("/runsync?wait=10", json={"input": {}}).status_code == 400
    assert quiet.post("/purge-queue").json() == {"removed": 1, "status": "completed"}


def test_the_sdks_client_works_unchanged(echo: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runpod, "endpoint_url_base", echo.endpoint.base_url)
    endpoint = runpod.Endpoint("local", api_key="any")
    expected = [{"index": 0, "success": True, "result": "a"}, {"index": 1, "success": True, "result": "b"}]
    assert endpoint.run_sync({"input": {"items": ["a", "b"]}}) == expected
    job = endpoint.run({"items": ["a", "b"]})
    assert list(job.stream()) == expected
    assert job.output() == expected
    assert endpoint.health()["workers"]["ready"] == 1
    assert endpoint.purge_queue() == {"removed": 0, "status": "completed"}


def test_the_sdks_asyncio_client_works_unchanged(echo: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runpod, "endpoint_url_base", echo.endpoint.base_url)

    async def scenario() -> Any:
        async with aiohttp.ClientSession() as session:
            endpoint = runpod.AsyncioEndpoint("local", session, api_key="any")
            job = await endpoint.run({"items": ["a"]})
            streamed = [chunk async for chunk in job.stream()]
            return streamed, await job.output(timeout=10)

    streamed, output = asyncio.run(scenario())
    assert streamed == output == [{"index": 0, "success": True, "result": "a"}]


@pytest.mark.parametrize("key", [None, "", "Bearer", "any"])
def test_a_request_without_a_key_is_refused(quiet: Caller, key: str | None) -> None:
    headers = {} if key is None else {"Authorization": key}
    answer = httpx.get(f"{quiet.endpoint.url}/health", headers=headers)
    assert answer.status_code == 401
    assert "Authorization" in answer.json()["error"]


def test_only_the_key_that_was_set_is_let_in() -> None:
    with LocalEndpoint(IDLE, api_key="right") as endpoint:
        for key, status in (("right", 200), ("wrong", 401)):
            answer = httpx.get(f"{endpoint.url}/health", headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == status


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"input": NaN}',
        b'{"input": "\xff"}',
        b"[" * 200_000,
        b'{"webhook": "http://127.0.0.1"}',
        b'{"input": null}',
        b'{"input": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"input": {}, "policy": 3}',
        b'{"input": {}, "policy": {"ttl": 3}}',
        b'{"input": {}, "webhook": 3}',
    ],
)
def test_a_body_that_is_no_job_is_refused(quiet: Caller, body: bytes) -> None:
    answer = quiet.post("/run", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("bad request")


@pytest.mark.parametrize(("operation", "limit"), [("run", 10_000_000), ("runsync", 20_000_000)])
def test_a_body_over_the_limit_is_refused(quiet: Caller, operation: str, limit: int) -> None:
    frame = len('{"input": {"x": ""}}')
    for size, status in ((limit, 200), (limit + 1, 400)):
        body = b'{"input": {"x": "%s"}}' % (b"x" * (size - frame))
        assert (
            quiet.post(f"/{operation}?wait=1000" if operation == "runsync" else "/run", content=body).status_code
            == status
        )
    quiet.post("/purge-queue")


def test_a_job_passes_through_the_worker_protocol(quiet: Caller) -> None:
    job_id = quiet.run([1])
    assert take(quiet) == {"id": job_id, "input": {"items": [1]}}
    assert quiet.status(job_id)["status"] == "IN_PROGRESS"
    assert done(quiet, job_id, {"output": []}, worker="another").status_code == 404
    assert quiet.post(f"/job-stream/mine/{job_id}?x", content='{"output": 1}').status_code == 200
    assert quiet.post(f"/job-stream/mine/{job_id}?x", content='{"output": NaN}').status_code == 400
    assert quiet.post(f"/job-stream/mine/{job_id}?x", content=json.dumps({"output": "x" * 10**6})).status_code == 400
    assert done(quiet, job_id, {"status": "IN_PROGRESS", "output": "half"}).status_code == 200
    assert (quiet.status(job_id)["status"], quiet.status(job_id)["output"]) == ("IN_PROGRESS", "half")
    assert done(quiet, job_id, {"output": "x" * 10**7}).status_code == 400
    assert done(quiet, job_id, {"output": [1]}).status_code == 200
    assert done(quiet, job_id, {"output": [1]}).status_code == 404
    assert list(quiet.stream(job_id)) == [1]
    assert (quiet.status(job_id)["status"], quiet.status(job_id)["output"]) == ("COMPLETED", [1])


def test_several_jobs_can_be_taken_at_once(quiet: Caller) -> None:
    ids = [quiet.run([number]) for number in range(3)]
    jobs = quiet.get("/job-take-batch/mine?gpu=none&batch_size=2&job_in_progress=0").json()
    assert [job["id"] for job in jobs] == ids[:2]
    assert take(quiet)["id"] == ids[2]
    for job_id in ids:
        done(quiet, job_id, {"output": []})


def test_a_cancelled_job_is_named_to_its_worker(quiet: Caller) -> None:
    job_id = quiet.run([1])
    take(quiet)
    assert quiet.post(f"/cancel/{job_id}").json() == {"id": job_id, "status": "CANCELLED"}
    assert quiet.get("/job-stop/mine?gpu=none").json() == {"jobsToStop": [job_id]}
    assert done(quiet, job_id, {"output": []}).status_code == 404
    waiting = quiet.run([1])
    quiet.post(f"/cancel/{waiting}")
    assert quiet.get("/health").json()["jobs"]["inQueue"] == 0


def test_a_job_that_is_cancelled_as_soon_as_it_is_taken_stops(serve: Serve, fifo: Path) -> None:
    """The SDK ignores a stop for a job that it has taken and not begun, up to 0.1 s later."""
    caller = serve("hostile", ITEM_CONCURRENCY="8")
    for _ in range(4):
        job_id = caller.run([{"read": str(fifo)}])
        while caller.status(job_id)["status"] == "IN_QUEUE":
            pass
        caller.post(f"/cancel/{job_id}")
        assert caller.runsync(["text"])["status"] == "COMPLETED"


def test_a_worker_killed_while_it_starts_is_replaced_if_the_command_has_worked(serve: Serve) -> None:
    caller = serve("hostile")
    assert caller.runsync(["text"])["status"] == "COMPLETED"
    for _ in range(2):  # a ready one, then its replacement at its start
        [worker] = caller.endpoint.workers.running
        os.kill(worker.process.pid, signal.SIGKILL)
        assert worker.exited.result(10) == -signal.SIGKILL
        while not caller.endpoint.workers.running:
            pass
    assert caller.runsync(["text"])["status"] == "COMPLETED"


def test_only_a_failed_job_can_be_retried(quiet: Caller) -> None:
    job_id = quiet.run([1])
    assert quiet.post(f"/retry/{job_id}").status_code == 400
    take(quiet)
    done(quiet, job_id, {"error": "no"})
    assert quiet.status(job_id)["error"] == "no"
    assert quiet.post(f"/retry/{job_id}").json() == {"id": job_id, "status": "IN_QUEUE"}
    assert "error" not in quiet.status(job_id)
    assert take(quiet)["id"] == job_id
    done(quiet, job_id, {"output": []})
    assert quiet.post("/retry/nobody").status_code == 404


def test_a_job_over_its_execution_timeout_is_timed_out_and_stopped() -> None:
    async def scenario() -> None:
        async def here() -> bool:
            return False

        queue = Queue()
        job = queue.submit("run", {"input": {}, "policy": {"executionTimeout": 50}})
        assert await queue.take("mine", 1, 1, here) == [job]
        await job.changed.wait(lambda: job.final, 10)
        assert job.state()["status"] == "TIMED_OUT"
        assert job.state()["error"] == "executionTimeout exceeded"
        assert await queue.stops("mine", 1) == [job.id]

    asyncio.run(scenario())


def test_a_job_is_not_handed_to_a_worker_that_has_hung_up() -> None:
    async def scenario() -> None:
        async def gone() -> bool:
            return True

        queue = Queue()
        job = queue.submit("run", {"input": {}})
        assert await queue.take("mine", 1, 1, gone) == []
        assert job.status == "IN_QUEUE"

    asyncio.run(scenario())


def test_a_webhook_is_told_the_final_state(quiet: Caller) -> None:
    told: list[Any] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        listening = threading.Thread(target=server.handle_request)
        listening.start()
        job = {"input": {"items": [1]}, "webhook": f"http://127.0.0.1:{server.server_port}/hook"}
        job_id = quiet.post("/run", json=job).json()["id"]
        assert take(quiet)["webhook"] == job["webhook"]
        done(quiet, job_id, {"output": [1]})
        listening.join(10)
    assert told == [quiet.status(job_id)]


def test_what_comes_in_as_an_escaped_surrogate_goes_out_as_one(quiet: Caller) -> None:
    job_id = quiet.post("/run", content=r'{"input": {"x": "\ud800"}}').json()["id"]
    assert take(quiet)["input"] == {"x": "\ud800"}
    done(quiet, job_id, {"output": "\ud800"})
    assert quiet.status(job_id)["output"] == "\ud800"


def test_any_worker_runs_under_the_command(tmp_path: Path) -> None:
    """Not only ours: the documented synchronous generator, started by ``python -m endpoint.local -- COMMAND``."""
    other = tmp_path / "other.py"
    other.write_text(
        "import runpod\n"
        "def handler(job):\n"
        "    yield from job['input']['items']\n"
        "runpod.serverless.start({'handler': handler, 'return_aggregate_stream': True})\n"
    )
    command = [sys.executable, "-m", "endpoint.local", "--port", "0", "--", sys.executable, str(other)]
    environment = {**os.environ, "RUNPOD_API_KEY": "secret"}
    with subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout is not None
        url = served.stdout.readline().split()[1]
        answer = httpx.post(
            f"{url}/runsync",
            json={"input": {"items": [1, 2]}},
            headers={"Authorization": "Bearer secret"},
            timeout=30,
        )
        served.send_signal(signal.SIGTERM)
        printed = served.stdout.read()
    assert answer.json()["output"] == [1, 2]
    assert "secret" not in printed
    assert served.returncode == 0


def test_a_caller_who_waits_is_answered_when_the_endpoint_stops() -> None:
    command = [sys.executable, "-m", "endpoint.local", "--port", "0", "--", *IDLE]
    pipe = subprocess.PIPE
    with (
        subprocess.Popen(command, cwd=PROJECT, stdout=pipe, stderr=pipe, text=True) as served,
        ThreadPoolExecutor() as pool,
    ):
        assert served.stdout is not None
        assert served.stderr is not None
        url = served.stdout.readline().split()[1]
        headers = {"Authorization": "Bearer any"}
        waiting = pool.submit(httpx.post, f"{url}/runsync", json={"input": {}}, headers=headers, timeout=30)
        while httpx.get(f"{url}/health", headers=headers).json()["jobs"]["inQueue"] == 0:
            assert not waiting.done()
        served.send_signal(signal.SIGINT)
        assert waiting.result().json()["status"] == "IN_QUEUE"
        assert served.stderr.read() == ""
    assert served.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_a_killed_endpoint_leaves_no_worker_behind() -> None:
    worker = [sys.executable, "-c", "import signal; print('worker', flush=True); signal.pause()"]
    command = [sys.executable, "-m", "endpoint.local", "--port", "0", "--", *worker]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout is not None
        while served.stdout.readline() != "worker\n":
            pass
        served.kill()
        served.communicate(timeout=30)  # until whoever could write there is gone


def test_an_image_without_docker_is_a_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "endpoint.local", "--port", "0", "--image", "any"]
    finished = subprocess.run(
        command, cwd=PROJECT, env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True, timeout=30
    )
    assert finished.returncode == 1
    assert finished.stderr.startswith("The endpoint cannot start: No such file or directory: docker.")
    assert finished.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--port", "99999"], "'99999' is not a number from 0 to 65535"),
        (["--workers", "none"], "'none' is not a number from 1 to 64"),
        (["--port", "0", "--", "/no/such/command"], "No such file or directory"),
        (["--port", "0", "--", sys.executable, "-c", "exit(3)"], "No worker is left"),
    ],
)
def test_a_bad_argument_is_a_sentence(arguments: list[str], sentence: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "endpoint.local", *arguments], cwd=PROJECT, capture_output=True, text=True, timeout=30
    )
    assert finished.returncode in (1, 2)
    assert sentence in finished.stderr
    assert "Traceback" not in finished.stderr
