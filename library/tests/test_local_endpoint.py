"""The local endpoint answers as Runpod does: its shapes, its limits, its refusals, to the SDK's own clients too."""

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import pytest
import runpod

from aggregating_worker.local import LocalEndpoint, server, webhooks
from aggregating_worker.local.body import Body
from aggregating_worker.local.job import Job
from aggregating_worker.local.queue import Full, Queue
from aggregating_worker.local.webhooks import Webhooks
from tests.conftest import LIBRARY, Caller, Serve

IDLE = [sys.executable, "-c", "import signal; signal.pause()"]
"""A command that never polls: a queue of its own for whoever tests it."""


@pytest.fixture(scope="module")
def echo(serve: Serve) -> Caller:
    return serve("hostile")


@pytest.fixture(scope="module")
def quiet() -> Iterator[Caller]:
    with LocalEndpoint(IDLE) as endpoint, Caller(endpoint, Path(os.devnull)) as caller:
        yield caller


@pytest.fixture
def alone() -> Iterator[Caller]:
    """Serve an endpoint for one test, whose worker is lost after it."""
    with LocalEndpoint(IDLE) as endpoint, Caller(endpoint, Path(os.devnull)) as caller:
        yield caller


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


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_status_sync_waits_for_the_result(quiet: Caller, method: str) -> None:
    job_id = quiet.post("/runsync?wait=1000", json={"input": {}}).json()["id"]
    path = f"/status-sync/{job_id}"
    assert quiet.http.request(method, path, params={"wait": 1_000}).json()["status"] == "IN_QUEUE"
    assert quiet.http.request(method, path, params={"wait": 10}).status_code == 400
    assert quiet.http.request(method, "/status-sync/nobody").status_code == 404
    quiet.take()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(quiet.http.request, method, path)
        quiet.done(job_id, {"output": 7})
        state = waiting.result().json()
    assert (state["id"], state["status"], state["output"]) == (job_id, "COMPLETED", 7)


def test_a_job_lives_as_long_as_a_look_at_it_says(quiet: Caller) -> None:
    job_id = quiet.run([1])
    assert quiet.get(f"/status/{job_id}?ttl=none").status_code == 400
    assert quiet.get(f"/status/{job_id}?ttl=300").json()["status"] == "IN_QUEUE"
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(quiet.get, f"/status-sync/{job_id}").result().json()
    assert ended["status"] == "CANCELLED"
    assert quiet.get(f"/status/{job_id}").status_code == 404


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


@pytest.mark.parametrize("key", [None, "", "Bearer", "Basic dXNlcg=="])
def test_a_request_without_a_key_is_refused(quiet: Caller, key: str | None) -> None:
    headers = {} if key is None else {"Authorization": key}
    answer = httpx2.get(f"{quiet.endpoint.url}/health", headers=headers)
    assert answer.status_code == 401
    assert "Authorization" in answer.json()["error"]


def test_only_the_key_that_was_set_is_let_in() -> None:
    with LocalEndpoint(IDLE, api_key="right") as endpoint:
        for key, status in (("right", 200), ("wrong", 401), ("rightly", 401)):
            for written in (key, f"Bearer {key}", f"bearer {key}"):  # the platform's documentation shows both
                answer = httpx2.get(f"{endpoint.url}/health", headers={"Authorization": written})
                assert answer.status_code == status


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"input": NaN}',
        b'{"input": 1e400}',
        b'{"input": [-1.5E+999]}',
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


@pytest.mark.parametrize(("operation", "limit"), [("run", 10), ("runsync", 20)])
def test_a_body_over_the_limit_is_refused_in_the_platforms_words(quiet: Caller, operation: str, limit: int) -> None:
    frame = len('{"input": {"x": ""}}')
    for size, status in ((limit * 2**20, 200), (limit * 2**20 + 1, 400)):
        body = b'{"input": {"x": "%s"}}' % (b"x" * (size - frame))
        answer = quiet.post(f"/{operation}", params={"wait": 1000}, content=body)
        assert answer.status_code == status
    assert f"exceeded max body size of {limit}MiB" in answer.json()["error"]
    quiet.post("/purge-queue")


def test_a_job_passes_through_the_worker_protocol(quiet: Caller) -> None:
    job_id = quiet.run([1])
    assert quiet.take() == {"id": job_id, "input": {"items": [1]}}
    assert quiet.status(job_id)["status"] == "IN_PROGRESS"
    assert quiet.chunk(job_id, 1).status_code == 200
    assert quiet.as_worker("POST", "job-stream", job_id, '{"output": NaN}').status_code == 400
    assert quiet.chunk(job_id, {"x": "x" * 10**6}).status_code == 400
    assert quiet.done(job_id, {"status": "IN_PROGRESS", "output": "half"}).status_code == 200
    assert (quiet.status(job_id)["status"], quiet.status(job_id)["output"]) == ("IN_PROGRESS", "half")
    assert quiet.done(job_id, {"output": "x" * 10 * 2**20}).status_code == 400
    assert quiet.done(job_id, {"output": [1]}).status_code == 200
    assert quiet.done(job_id, {"output": [1]}).status_code == 404
    assert list(quiet.stream(job_id)) == [1]
    assert (quiet.status(job_id)["status"], quiet.status(job_id)["output"]) == ("COMPLETED", [1])


@pytest.mark.parametrize(("answer", "status"), [({"output": 1}, "COMPLETED"), ({"error": "no"}, "FAILED")])
def test_a_progress_update_after_the_end_takes_the_end_back_as_on_the_platform(
    quiet: Caller, capfd: pytest.CaptureFixture[str], answer: dict[str, Any], status: str
) -> None:
    """runpod-python#250: such a job never ends. It still has the time that it took."""
    job_id = quiet.run([1])
    quiet.take()
    quiet.done(job_id, answer)
    assert quiet.status(job_id)["status"] == status
    assert quiet.done(job_id, {"status": "IN_PROGRESS", "output": "half"}).status_code == 200
    state = quiet.status(job_id)
    assert (state["status"], state["output"], "error" in state) == ("IN_PROGRESS", "half", False)
    assert state["executionTime"] >= 0
    assert f"A progress update of job {job_id} came after its end. It was {status}" in capfd.readouterr().err
    assert quiet.get("/health").json()["jobs"]["inProgress"] == 0
    assert quiet.post(f"/cancel/{job_id}").json()["status"] == "CANCELLED"
    assert quiet.done(job_id, {"status": "IN_PROGRESS"}).status_code == 404


def test_a_chunk_that_is_too_large_and_no_text_is_a_line_in_the_log(
    quiet: Caller, capfd: pytest.CaptureFixture[str]
) -> None:
    job_id = quiet.run([1])
    quiet.take()
    for large in ({"x": "x" * 10**6}, ["x" * 10**6]):
        assert quiet.chunk(job_id, large).status_code == 400
        assert f"A chunk of job {job_id} is refused: it has 1,000,0" in capfd.readouterr().err
    quiet.done(job_id, {"output": []})
    assert quiet.get(f"/stream/{job_id}").json()["stream"] == []


def test_requests_lists_the_jobs_that_are_kept(alone: Caller) -> None:
    first = alone.run([1])
    alone.take()
    alone.done(first, {"output": [1]})
    second = alone.run([2])
    listed = alone.get("/requests").json()["requests"]
    assert [(job["id"], job["status"]) for job in listed] == [(second, "IN_QUEUE"), (first, "COMPLETED")]
    assert listed[1].keys() == {"id", "status", "delayTime", "executionTime", "workerId"}


def test_a_text_too_long_for_one_chunk_is_several(quiet: Caller) -> None:
    job_id = quiet.run([1])
    quiet.take()
    text = "\U0001f600\u0000x" * 500_000
    assert quiet.chunk(job_id, text).status_code == 200
    pieces = [chunk["output"] for chunk in quiet.get(f"/stream/{job_id}").json()["stream"]]
    assert "".join(pieces) == text
    assert all(len(json.dumps(piece)) <= 1_000_000 for piece in pieces)
    quiet.done(job_id, {"output": []})


def test_what_nobody_knows_in_a_request_does_not_reach_the_worker(quiet: Caller) -> None:
    request = {"input": {"items": [1]}, "id": "mine", "status": "COMPLETED", "policy": {"ttl": 20_000}, "output": 1}
    known = {"webhook": "http://127.0.0.1:1/", "s3Config": {"bucketName": "x"}}
    job_id = quiet.post("/run", json={**request, **known}).json()["id"]
    assert quiet.take() == {"id": job_id, "input": {"items": [1]}, **known}
    quiet.done(job_id, {"error": "no"})


@pytest.mark.parametrize("depth", [253, 900])
def test_a_result_nested_as_deep_as_may_be_comes_back(quiet: Caller, depth: int) -> None:
    job_id = quiet.run([1])
    quiet.take()
    deep = "[" * depth + "]" * depth
    assert quiet.as_worker("POST", "job-stream", job_id, f'{{"output": {deep}}}').status_code == 200
    assert quiet.as_worker("POST", "job-done", job_id, f'{{"output": {deep}}}').status_code == 200
    assert deep in quiet.get(f"/status/{job_id}").text
    assert deep in quiet.get(f"/stream/{job_id}").text
    with httpx2.stream("GET", f"{quiet.endpoint.page_url}feed", headers={"Authorization": "any"}) as feed:
        assert any(job_id in line for line in feed.iter_lines())


def test_several_jobs_can_be_taken_at_once(quiet: Caller) -> None:
    ids = [quiet.run([number]) for number in range(3)]
    jobs = quiet.as_worker("GET", "job-take-batch", batch_size=2).json()
    assert [job["id"] for job in jobs] == ids[:2]
    assert quiet.take()["id"] == ids[2]
    for job_id in ids:
        quiet.done(job_id, {"output": []})


def test_a_cancelled_job_is_named_to_its_worker(alone: Caller) -> None:
    job_id = alone.run([1])
    alone.take()
    assert alone.post(f"/cancel/{job_id}").json() == {"id": job_id, "status": "CANCELLED"}
    assert alone.as_worker("GET", "job-stop").json() == {"jobsToStop": [job_id]}
    assert alone.done(job_id, {"output": []}).status_code == 404
    waiting = alone.run([1])
    alone.post(f"/cancel/{waiting}")
    assert alone.get("/health").json()["jobs"]["inQueue"] == 0


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
    quiet.take()
    quiet.done(job_id, {"error": "no"})
    assert quiet.status(job_id)["error"] == "no"
    assert quiet.post(f"/retry/{job_id}").json() == {"id": job_id, "status": "IN_QUEUE"}
    assert "error" not in quiet.status(job_id)
    assert quiet.take()["id"] == job_id
    quiet.done(job_id, {"output": []})
    assert quiet.post("/retry/nobody").status_code == 404


async def here() -> bool:
    return False


async def gone() -> bool:
    return True


def submit(queue: Queue, operation: str = "run", **request: Any) -> Job:
    body = {"input": {}, **request}
    return queue.submit(Job.of(operation, Body(body, json.dumps(body).encode())))


def test_a_job_over_its_execution_timeout_is_timed_out_and_stopped() -> None:
    async def scenario() -> None:
        queue = Queue()
        job = submit(queue, policy={"executionTimeout": 50})
        assert await queue.take("mine", 1, 1, here) == [job]
        await job.changed.wait(lambda: job.final, 10)
        assert json.loads(job.state())["status"] == "TIMED_OUT"
        assert json.loads(job.state())["error"] == "executionTimeout exceeded"
        assert await queue.stopped("mine", 1) == [job.id]

    asyncio.run(scenario())


def test_a_job_that_is_done_again_is_not_stopped_for_its_first_run() -> None:
    async def scenario() -> None:
        queue = Queue()
        job = submit(queue, policy={"executionTimeout": 50})
        await queue.take("mine", 1, 1, here)
        await job.changed.wait(lambda: job.final, 10)
        queue.retry(job)
        job.policy = {}
        assert await queue.take("mine", 1, 1, here) == [job]
        assert await queue.stopped("mine", 1.2) == []

    asyncio.run(scenario())


def test_a_job_is_not_handed_to_a_worker_that_has_hung_up() -> None:
    async def scenario() -> None:
        queue = Queue()
        asking = asyncio.create_task(queue.take("mine", 1, 5, gone))
        await asyncio.sleep(0)
        job = submit(queue)
        assert await asking == []
        assert job.status == "IN_QUEUE"

    asyncio.run(scenario())


def test_jobs_that_come_together_are_shared_by_the_workers_that_wait() -> None:
    async def scenario() -> None:
        queue = Queue()
        asking = [asyncio.create_task(queue.take(name, 8, 5, here)) for name in ("one", "other", "third")]
        await asyncio.sleep(0)
        jobs = [submit(queue) for _ in range(7)]
        assert [len(taken) for taken in await asyncio.gather(*asking)] == [3, 2, 2]
        assert {job.worker for job in jobs} == {"one", "other", "third"}

    asyncio.run(scenario())


def test_a_job_is_for_who_has_waited_longest_although_another_asks_before_he_hears_of_it() -> None:
    async def scenario() -> None:
        queue = Queue()
        first = asyncio.create_task(queue.take("first", 1, 20, here))
        await asyncio.sleep(0)
        job = submit(queue)
        assert await queue.take("second", 1, 0, here) == []
        assert await first == [job]

    asyncio.run(scenario())


def test_what_is_kept_has_a_bound_and_the_oldest_results_go_first() -> None:
    async def scenario() -> None:
        queue = Queue(memory=1_000_000)
        jobs = []
        for _ in range(10):
            jobs.append(submit(queue))
            [job] = await queue.take("mine", 1, 1, here)
            queue.stream(job, b"x" * 90_000)
            queue.done(job, b"x" * 90_000, "COMPLETED")
        assert [*queue.jobs.values()] == jobs[5:]
        while True:  # what has not ended is never dropped: what has makes room for it, then there is none
            try:
                jobs.append(submit(queue, input="x" * 90_000))
            except Full:
                break
        assert [*queue.jobs.values()] == jobs[10:]
        assert len(jobs) == 20
        [job] = await queue.take("mine", 1, 1, here)
        queue.stream(job, b"1" * 50_000)
        queue.stream(job, b"2" * 50_000)
        assert [chunk[:1] for chunk in job.chunks] == [b"2"]
        assert queue.purge() == 9

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
        job_id = quiet.post("/run", json={**job, "s3Config": {"accessSecret": "x"}}).json()["id"]
        assert quiet.take()["webhook"] == job["webhook"]
        quiet.done(job_id, {"output": [1]})
        listening.join(10)
    assert told == [{**quiet.status(job_id), **job}]


async def hooked(count: int, url: str) -> tuple[Webhooks, list[str], list[Job]]:
    """End this many jobs at once that have a webhook; return what calls them, and what it says."""
    said: list[str] = []
    webhooks = Webhooks(said.append)
    queue = Queue()
    queue.on_final = webhooks.call
    jobs = [submit(queue, webhook=url) for _ in range(count)]
    queue.purge()
    return webhooks, said, jobs


class Hooks:
    """Answers webhooks with ``answer``, or never."""

    def __init__(self, answer: bytes = b"") -> None:
        self.answer = answer
        self.called = self.hung_up = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.called += 1
        writer.write(self.answer)
        await reader.read()
        writer.close()
        await writer.wait_closed()
        self.hung_up += 1

    @contextlib.asynccontextmanager
    async def listen(self) -> AsyncIterator[str]:
        async with await asyncio.start_server(self.handle, "127.0.0.1", 0, backlog=1_000) as listener:
            yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
            while self.hung_up < self.called:
                await asyncio.sleep(0.02)


def test_a_webhook_that_fails_is_a_line_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "PAUSE", 0.01)
    monkeypatch.setattr(webhooks, "SECONDS", 0.2)

    async def scenario(hooks: Hooks, address: str = "") -> str:
        async with hooks.listen() as url:
            _, said, [job] = await hooked(1, address or url)
            while not said:
                await asyncio.sleep(0.02)
        return said[0].removeprefix(f"The webhook of job {job.id} was called 3 times: ")

    busy = Hooks(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n")
    assert asyncio.run(scenario(busy)) == "it answered 503."
    assert busy.called == 3
    assert asyncio.run(scenario(Hooks())) == "no answer within 0 s."
    assert "protocol" in asyncio.run(scenario(Hooks(), "htp:/x"))


def test_webhooks_that_never_answer_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "ROOM", 500 * (webhooks.OWN_BYTES + 1_000))
    hooks = Hooks()

    async def scenario() -> None:
        async with hooks.listen() as url:
            calls, said, _ = await hooked(600, url)
            assert 0 < len(said) < 100
            assert all("is not called: too many others" in line for line in said)
            while hooks.called < webhooks.AT_ONCE:
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.2)
            assert hooks.called == webhooks.AT_ONCE
            waiting = [*calls._tasks]
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
            assert (calls._held, calls._tasks) == (0, set())

    asyncio.run(scenario())


def raw(caller: Caller, *parts: bytes) -> bytes:
    """Send these bytes on a connection of their own; return what comes back until the other end hangs up."""
    port = int(caller.endpoint.page_url.rpartition(":")[2].rstrip("/"))
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        with contextlib.suppress(ConnectionError):  # it hangs up while there is more to come
            for part in parts:
                connection.sendall(part)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65_536):
                answer += part
        return answer


LINE = b"GET /v2/local/health HTTP/1.1\r\nHost: 127.0.0.1\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n0\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        [LINE, *[b"X-%d: %s\r\n" % (number, b"x" * 1_000) for number in range(100_000)]],
        [LINE, b"X: ", *[b"x" * 100_000] * 1_000],
        [b"GET /", *[b"x" * 100_000] * 1_000],
        [LINE + b"X: %s\r\n\r\n" % (b"x" * 200_000)],
        [LINE + b"Authorization: any\r\n\r\n" + LINE, b"X: ", *[b"x" * 100_000] * 1_000],
        [LINE + CHUNKED, *[b"X-%d: %s\r\n" % (number, b"x" * 1_000) for number in range(100_000)]],
        [LINE + CHUNKED, b"X: ", *[b"x" * 100_000] * 1_000],
    ],
    ids=["headers", "header", "path", "at once", "on a used connection", "trailers", "trailer"],
)
def test_endless_headers_are_refused_before_they_are_kept(quiet: Caller, parts: list[bytes]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = raw(quiet, *parts)
    # There is no answer if it was still sending; one to a request comes before its trailers.
    assert answer == b"" or b"HTTP/1.1 431 " in answer or CHUNKED in parts[0]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_a_head_that_comes_slowly_in_many_parts_is_read(quiet: Caller) -> None:
    text = LINE + b"Connection: close\r\nAuthorization: any\r\nX: %s\r\n\r\n" % (b"x" * 60_000)
    parts = [text[start : start + 7_001] for start in range(0, len(text), 7_001)]
    assert raw(quiet, *parts).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 50])
def test_a_head_may_end_where_a_long_body_begins(quiet: Caller, cut: int) -> None:
    body = b'{"input": "%s"}' % (b"x" * 200_000)
    head = LINE.replace(b"GET", b"POST").replace(b"health", b"run") + b"Connection: close\r\nAuthorization: any\r\n"
    head += b"Content-Length: %d\r\n\r\n" % len(body)
    port = int(quiet.endpoint.page_url.rpartition(":")[2].rstrip("/"))
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(head[:-cut])
        time.sleep(0.05)  # so that the rest is a lot of its own
        connection.sendall(head[-cut:] + body)
        assert connection.recv(1_000).startswith(b"HTTP/1.1 200 ")
    quiet.post("/purge-queue")


@pytest.mark.parametrize("part", [b"", LINE], ids=["nothing", "half a head"])
def test_a_connection_on_which_no_head_comes_is_closed(monkeypatch: pytest.MonkeyPatch, part: bytes) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE", 0.2)
    with LocalEndpoint(IDLE) as endpoint, Caller(endpoint, Path(os.devnull)) as caller:
        assert raw(caller, part) == b""


def test_a_websocket_is_refused_and_other_upgrades_are_not_made(quiet: Caller) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: %s\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n\r\n"
    for path in (b"/", b"/v2/local/health", b"/feed"):
        answer = raw(quiet, LINE.replace(b"/v2/local/health", path) + upgrade % b"websocket")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"no WebSocket here" in answer
    h2c = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c"}
    assert quiet.get("/health", headers=h2c).status_code == 200


def test_what_comes_in_as_an_escaped_surrogate_goes_out_as_one(quiet: Caller) -> None:
    job_id = quiet.post("/run", content=r'{"input": {"x": "\ud800"}}').json()["id"]
    assert quiet.take()["input"] == {"x": "\ud800"}
    quiet.done(job_id, {"output": "\ud800"})
    assert quiet.status(job_id)["output"] == "\ud800"


def test_any_worker_runs_under_the_command(tmp_path: Path) -> None:
    """Not only ours: the documented synchronous generator. It is called with the line that ``serve`` prints."""
    other = tmp_path / "other.py"
    other.write_text(
        "import runpod\n"
        "def handler(job):\n"
        "    yield from job['input']['items']\n"
        "runpod.serverless.start({'handler': handler, 'return_aggregate_stream': True})\n"
    )
    command = [sys.executable, "-m", "aggregating_worker", "serve", "--port", "0", "--", sys.executable, str(other)]
    environment = {**os.environ, "RUNPOD_API_KEY": "secret"}
    with subprocess.Popen(command, cwd=LIBRARY, env=environment, stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout is not None
        call = next(line for line in served.stdout if line.startswith("Call it")).removeprefix("Call it").strip()
        curl = f"curl() {{ printf '%s\\n' \"$@\"; }}; {call}"
        _, header, url, *_ = subprocess.check_output(["sh", "-c", curl], env=environment, text=True).splitlines()
        name, _, key = header.partition(": ")
        answer = httpx2.post(url, json={"input": {"items": [1, 2]}}, headers={name: key}, timeout=30)
        served.send_signal(signal.SIGTERM)
        printed = call + served.stdout.read()
    assert answer.json()["output"] == [1, 2]
    assert "secret" not in printed
    assert served.returncode == 0


@pytest.mark.usefixtures("interruptible")
def test_a_caller_who_waits_is_answered_when_the_endpoint_stops() -> None:
    command = [sys.executable, "-m", "aggregating_worker", "serve", "--port", "0", "--", *IDLE]
    pipe = subprocess.PIPE
    with (
        subprocess.Popen(command, cwd=LIBRARY, stdout=pipe, stderr=pipe, text=True) as served,
        ThreadPoolExecutor() as pool,
    ):
        assert served.stdout is not None
        assert served.stderr is not None
        url = served.stdout.readline().split()[1]
        headers = {"Authorization": "Bearer any"}
        waiting = pool.submit(httpx2.post, f"{url}/runsync", json={"input": {}}, headers=headers, timeout=30)
        while httpx2.get(f"{url}/health", headers=headers).json()["jobs"]["inQueue"] == 0:
            assert not waiting.done()
        served.send_signal(signal.SIGINT)
        assert waiting.result().json()["status"] == "IN_QUEUE"
        assert served.stderr.read() == ""
    assert served.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "unhealthy"),
    [(["--workers", "0", "--", *IDLE], 0), (["--workers", "2", "--", sys.executable, "-c", "exit(3)"], 2)],
)
def test_an_endpoint_with_no_worker_that_works_waits(arguments: list[str], unhealthy: int) -> None:
    """So that a caller can try what it does while its job stays in the queue."""
    command = [sys.executable, "-m", "aggregating_worker", "serve", "--port", "0", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=LIBRARY, stdout=pipe, stderr=pipe, text=True) as served:
        assert served.stdout is not None
        url = served.stdout.readline().split()[1]
        with httpx2.Client(headers={"Authorization": "any"}) as http:
            state = http.post(f"{url}/runsync?wait=2000", json={"input": {}}).json()
            health = http.get(f"{url}/health").json()
        assert served.poll() is None
        served.terminate()
        _, errors = served.communicate(timeout=30)
    assert state["status"] == "IN_QUEUE"
    idle = dict.fromkeys(("idle", "initializing", "ready", "running", "throttled"), 0)
    assert health["workers"] == {**idle, "unhealthy": unhealthy}
    assert errors.count("ended before it asked for a job, with status 3") == errors.count("\n") == unhealthy


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_a_killed_endpoint_leaves_no_worker_behind() -> None:
    worker = [sys.executable, "-c", "import signal; print('worker', flush=True); signal.pause()"]
    command = [sys.executable, "-m", "aggregating_worker", "serve", "--port", "0", "--", *worker]
    with subprocess.Popen(command, cwd=LIBRARY, stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout is not None
        while served.stdout.readline() != "worker\n":
            pass
        served.kill()
        served.communicate(timeout=30)  # until whoever could write there is gone


def test_an_image_without_docker_is_a_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "aggregating_worker", "serve", "--port", "0", "--image", "any"]
    finished = subprocess.run(
        command, cwd=LIBRARY, env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True, timeout=30
    )
    assert finished.returncode == 1
    assert finished.stderr.startswith("The endpoint cannot start: No such file or directory: docker.")
    assert finished.stderr.count("\n") == 1


def test_a_folder_without_a_handler_and_a_port_in_use_are_sentences(quiet: Caller, tmp_path: Path) -> None:
    taken = quiet.endpoint.url.removeprefix("http://127.0.0.1:").partition("/")[0]
    for arguments, sentence in (
        ([], "There is no handler.py in this folder: run this in a worker's project, or give a command after --."),
        (["--port", taken, "--", *IDLE], f"Port {taken} is in use: choose another --port."),
    ):
        command = [sys.executable, "-m", "aggregating_worker", "serve", *arguments]
        finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30)
        assert (finished.returncode, finished.stderr) == (1, f"{sentence}\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--port", "99999"], "'99999' is not a number from 0 to 65535"),
        (["--workers", "none"], "'none' is not a number from 0 to 64"),
        (["--port", "0", "--", "/no/such/command"], "No such file or directory"),
        (["--image", "any", "--reload"], "--reload does not go with --image"),
    ],
)
def test_a_bad_argument_is_a_sentence(arguments: list[str], sentence: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "aggregating_worker", "serve", *arguments],
        cwd=LIBRARY,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert finished.returncode in (1, 2)
    assert sentence in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("GET", "/health/", 200),
        ("HEAD", "/health", 200),
        ("POST", "/health", 405),
        ("GET", "/run", 405),
        ("GET", "/healthy", 404),
        ("GET", "/health/of", 404),
        ("GET", "/status", 404),
        ("GET", "/status//", 404),
        ("GET", "/status/%2F", 404),
        ("GET", "/status/%0A", 404),
        ("OPTIONS", "/health", 405),
    ],
)
def test_what_is_asked_of_no_route_is_refused_with_a_sentence(
    quiet: Caller, method: str, path: str, status: int
) -> None:
    answer = quiet.http.request(method, path)
    assert answer.status_code == status
    if status != 200:
        assert answer.json()["error"]
