"""A job is paid for once: its caller has what came of it, or is told that it may be queued."""

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable

import httpx2
import pytest
import stamina

from aggregating_worker.client import CallFailed, Client, JobUnknown, api, http
from aggregating_worker.client import client as following
from aggregating_worker.client.http import Http
from tests.calling import Answer, Request, call, client, job_of, proxy, serve_http
from tests.conftest import Caller, Serve

JOB = {"input": {"items": [1]}}
QUEUED = Answer(200, b'{"id": "a", "status": "IN_QUEUE"}')
OPERATIONS = {
    "run": lambda caller: caller.run(JOB),
    "runsync": lambda caller: caller.runsync(JOB),
    "submit": lambda caller: caller.submit(JOB),
}


@pytest.fixture(scope="module")
def echo(serve: Serve) -> Caller:
    return serve("hostile")


@pytest.mark.parametrize(
    "answer",
    [
        Answer(0),
        Answer(200, QUEUED.body, sent=9),
        Answer(200, b"<html>"),
        Answer(200, b"{}"),
        *map(Answer, (408, 500, 502, 504, 524)),
    ],
    ids=["cut", "cut in the body", "a page", "no id", "408", "500", "502", "504", "524"],
)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_job_that_may_be_queued_is_not_sent_again(operation: str, answer: Answer) -> None:
    sent: list[Request] = []

    def answered(request: Request) -> Answer:
        sent.append(request)
        return answer

    with serve_http(answered) as address, pytest.raises(JobUnknown, match="may be queued all the same") as unknown:
        call(address, OPERATIONS[operation])
    assert len(sent) == 1
    assert ("use run" in str(unknown.value)) == (operation == "runsync" and answer.status in (504, 524))


@pytest.mark.parametrize("status", [429, 503])
def test_a_job_that_the_platform_did_not_take_is_sent_again(status: int) -> None:
    answers = iter([Answer(status), QUEUED])
    with serve_http(lambda _: next(answers)) as address:
        assert call(address, lambda caller: caller.submit(JOB)) == "a"


@pytest.mark.parametrize("answer", [Answer(400), Answer(401), Answer(503), Answer(400, b"{", sent=0)], ids=str)
def test_a_job_that_is_refused_is_not_queued(monkeypatch: pytest.MonkeyPatch, answer: Answer) -> None:
    monkeypatch.setattr(http, "ATTEMPTS", 1)
    with serve_http(lambda _: answer) as address, pytest.raises(CallFailed) as refused:
        call(address, lambda caller: caller.submit(JOB))
    assert not isinstance(refused.value, JobUnknown)


@pytest.mark.parametrize(
    ("error", "sent"),
    [
        *((error, 2) for error in (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)),
        *((error, 1) for error in (httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError)),
        *((error, 1) for error in (httpx2.ReadTimeout, httpx2.WriteTimeout, httpx2.CloseError)),
    ],
)
def test_only_a_call_without_a_connection_is_made_again(error: type[httpx2.RequestError], sent: int) -> None:
    requests: list[httpx2.Request] = []

    def fail(request: httpx2.Request) -> httpx2.Response:
        requests.append(request)
        raise error("no", request=request)

    async def scenario() -> None:
        await Http(httpx2.AsyncClient(transport=httpx2.MockTransport(fail))).json("POST", "http://x/run", once=True)

    with stamina.set_testing(True, attempts=2), pytest.raises(CallFailed) as failed:
        asyncio.run(scenario())
    assert len(requests) == sent
    assert failed.value.untaken == (sent == 2)


def test_a_job_is_sent_once_there_is_somebody_to_take_it(free_port: int) -> None:
    def take() -> None:
        time.sleep(0.4)
        with serve_http(lambda _: QUEUED, free_port):
            taken.wait(20)

    taken = threading.Event()
    thread = threading.Thread(target=take)
    thread.start()
    try:
        assert call(f"http://127.0.0.1:{free_port}", lambda caller: caller.submit(JOB)) == "a"
    finally:
        taken.set()
        thread.join()


def test_every_job_goes_out_on_a_connection_of_its_own() -> None:
    ports: list[tuple[str, int]] = []

    def answer(request: Request) -> Answer:
        ports.append((request.method, request.port))
        return QUEUED

    async def scenario(caller: Client) -> None:
        for _ in range(3):
            await caller.submit(JOB)
            await caller.status("a")

    with serve_http(answer) as address:
        call(address, scenario)
    assert len({port for method, port in ports if method == "POST"}) == 3
    assert len({port for method, port in ports if method == "GET"}) == 1


def test_a_job_that_waits_for_its_turn_is_not_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "GRACE", 0.3)
    monkeypatch.setattr(api, "GAP", 0.5)

    async def three(caller: Client) -> list[str]:
        return await asyncio.gather(*(caller.submit(JOB) for _ in range(3)))

    with serve_http(lambda _: QUEUED) as address:
        assert call(address, three) == ["a"] * 3


@pytest.mark.parametrize("operation", ["run", "runsync", "stream"])
def test_the_command_says_that_a_job_may_be_queued(operation: str) -> None:
    with serve_http(lambda _: Answer(504)) as address:
        finished = client(address, operation, "-", given=job_of(1))
    assert (finished.returncode, finished.stdout) == (2, b"")
    assert finished.stderr.startswith(b"127.0.0.1 answered 504: Gateway Timeout. The job may be queued all the same")
    assert finished.stderr.count(b"\n") == 1
    assert (b"use run" in finished.stderr) == (operation == "runsync")


def test_a_job_that_is_interrupted_while_it_is_sent_is_cancelled(echo: Caller) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def meddle(request: Request, forward: Callable[[], Answer]) -> Answer:
        if request.path.endswith("/run"):
            arrived.set()
            go_on.wait(20)
        return forward()

    async def interrupt(caller: Client) -> None:
        running = asyncio.create_task(caller.run({"input": {"items": ["interrupted"]}}))
        await asyncio.to_thread(arrived.wait, 20)
        running.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await running

    # No worker takes it before it is cancelled: it has none, or is busy with the job before.
    with proxy(echo.endpoint.base_url, meddle) as base_url:
        call(base_url, interrupt)
    [job] = [job for job in echo.endpoint.queue.jobs.values() if b'"interrupted"' in job.request]
    assert job.final


def test_a_job_whose_sending_cannot_be_finished_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "PATIENCE", 0.1)
    arrived, over, told = threading.Event(), threading.Event(), list[str]()

    def answer(_: Request) -> Answer:
        arrived.set()
        over.wait(20)
        return QUEUED

    async def interrupt(address: str) -> None:
        async with Client("local", api_key="k", base_url=address, told=told.append) as caller:
            sending = asyncio.create_task(caller.submit(JOB))
            await asyncio.to_thread(arrived.wait, 20)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending

    with serve_http(answer) as address:
        try:
            asyncio.run(interrupt(address))
        finally:
            over.set()
    assert told == ["A job that was being sent may be queued."]


class Weather:
    """A proxy's mood: what becomes of each request, by one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.left = 8
        """Troubles to come: so many, and a request that is made again gets through."""

    def meddle(self, request: Request, forward: Callable[[], Answer]) -> Answer:
        with self.lock:
            trouble = self.random.random() < 0.4 and self.left > 0
            self.left -= trouble
            kind, taken, cut = self.random.randrange(6), self.random.random() < 0.6, self.random.random()
        if not trouble:
            return forward()
        if kind == 0:  # the platform says itself that it did not take it
            return Answer(self.random.choice((429, 503)))
        answer = forward() if taken else Answer(200, b"{}")
        if kind == 1:
            return Answer(0)
        if kind == 2:
            return Answer(answer.status, answer.body, sent=int(cut * len(answer.body)))
        if kind == 3:
            return Answer(self.random.choice((500, 502, 504, 524)), b"<html>")
        if kind == 4:
            garbage = [b"<html>", b"", b"\xff", b'{"id": "a", "status":']
            if "/run" in request.path:  # of a job that is known, it would be the end
                garbage += [b"[1]", b'{"id": 3}']
            return Answer(200, self.random.choice(garbage))
        time.sleep(0.35)  # longer than the client waits
        return answer


@pytest.mark.timeout(300)
def test_no_job_is_queued_that_nobody_knows_of_in_any_weather(echo: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 schedules: a job is queued once if it has results, and at most once if it is said to be unknown."""
    monkeypatch.setattr(http, "TIMEOUT", 0.3)
    monkeypatch.setattr(following, "RUNSYNC_WAIT", 0.0)
    weather = Weather(0)
    said: dict[str, str] = {}

    async def one(caller: Client, name: str) -> None:
        operation = weather.random.choice((caller.run, caller.runsync))
        try:
            [envelope] = await operation({"input": {"items": [name]}})
        except JobUnknown:
            said[name] = "unknown"
        else:
            said[name] = envelope["result"]

    async def schedules(caller: Client) -> None:
        nonlocal weather
        for seed in range(200):
            weather = Weather(seed)
            await asyncio.gather(*(one(caller, f"job {seed}-{number}") for number in range(2)))

    with (
        stamina.set_testing(True, attempts=20),
        proxy(echo.endpoint.base_url, lambda request, forward: weather.meddle(request, forward)) as base_url,
    ):
        call(base_url, schedules)
    queued: Counter[str] = Counter()
    for job in echo.endpoint.queue.jobs.values():
        queued.update(json.loads(b"{%s}" % job.request)["input"]["items"])
    known = [name for name, result in said.items() if result == name]
    unknown = [name for name, result in said.items() if result == "unknown"]
    assert len(known) + len(unknown) == 400
    assert {queued[name] for name in known} == {1}
    assert {queued[name] for name in unknown} == {0, 1}
