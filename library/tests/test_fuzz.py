"""Whatever bytes come from outside: a sentence, another try or a closed connection, and what follows is as ever.

Real bytes are changed at random. An ``@example`` is what was found so once. ``make fuzz SECONDS=600`` looks for more.
"""

import asyncio
import io
import json
import logging
import os
import re
import socket
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import astuple
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import aiohttp
import httpx2
import pytest
import stamina
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from runpod.serverless.modules import rp_http, rp_job
from yarl import URL

from aggregating_worker.calls.stream import Stream
from aggregating_worker.client import CallFailed, Client, JobUnknown, api, envelopes
from aggregating_worker.client import client as following
from aggregating_worker.client.http import Http
from aggregating_worker.client.job import JobFailed
from aggregating_worker.client.map import map_file
from aggregating_worker.delivery import post, sender
from aggregating_worker.delivery.sender import Sender
from aggregating_worker.failed import ItemFailed
from aggregating_worker.intake import loop
from aggregating_worker.local import LocalEndpoint, client_api, worker_api
from aggregating_worker.outcome.result import Raised
from aggregating_worker.process.folders import Folders
from aggregating_worker.process.function import TaskFunction
from aggregating_worker.process.process import LOADS, Owner, Process
from aggregating_worker.process.run import Runner
from aggregating_worker.process.wire import Ask, Flag, Frames, Say, frame, outcome, values
from aggregating_worker.settings import Settings
from tests import engine
from tests.conftest import Caller

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))
"""How many times as many examples as in a run of all tests."""
VALUES = [
    *(b"null", b"true", b"0", b"-1", b"1.5", b"1e999", b"NaN", b"9" * 5_000, b"[]", b"{}", b'""', b'"a"'),
    *(b"[" * deep + b"]" * deep for deep in (930, 970, 2_000)),
    *(b'"\\ud800"', b'"\\u0000"', b'"\xff"', b'"http://["', b'["a", {"id": "1"}]'),
]
"""JSON, or nearly. What is deep Python reads in few calls, and not in many."""
TOKENS = [
    *(b'"' + b'\\"' * 9_000, b"\\", b'"', b"{", b"}", b"[", b"]", b": ", b", "),
    *(b"\r\n", b"\n", b"\0", b"\xff" * 9, b"%ff%00", b"../", b"\t" * 9, b"0\r\n\r\n", b"a" * 70_000),
]
"""What else is put in somewhere."""
VALUE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.]*|true|false|null')
NAME = re.compile(rb'"\w+"(?=: )')


def mutated(*seeds: bytes, tokens: Sequence[bytes] = (), within: bool = False) -> st.SearchStrategy[bytes]:
    """Make one of ``seeds`` wrong; if ``within``, only by other JSON values in it, and further members."""
    values, every = [*VALUES, *tokens], [*VALUES, *tokens, *TOKENS]
    kinds = ["value", "member"] if within else ["value", "member", "flip", "cut", "double", "splice", "put", "move"]

    @st.composite
    def make(draw: st.DrawFn) -> bytes:
        data = draw(st.sampled_from(seeds))
        for _ in range(draw(st.integers(1, 3))):
            begin, end = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
            match draw(st.sampled_from(kinds)):
                case "value" if found := [*VALUE.finditer(data)]:
                    begin, end = draw(st.sampled_from(found)).span()
                    data = data[:begin] + draw(st.sampled_from(values)) + data[end:]
                case "member" if names := sorted({*NAME.findall(data)}):
                    begin = draw(st.sampled_from([found.start() for found in re.finditer(b"}", data)] or [begin]))
                    member = b", %b: %b" % (draw(st.sampled_from(names)), draw(st.sampled_from(values)))
                    data = data[:begin] + member + data[begin:]
                case "flip" if begin < len(data):
                    flipped = data[begin] ^ 1 << draw(st.integers(0, 7))
                    data = data[:begin] + bytes([flipped]) + data[begin + 1 :]
                case "cut":
                    data = data[:begin] + data[end:]
                case "double":
                    data = data[:end] + data[begin:]
                case "splice":
                    other = draw(st.sampled_from(seeds))
                    data = data[:begin] + other[draw(st.integers(0, len(other))) :]
                case "put":
                    data = data[:begin] + draw(st.sampled_from(every)) + data[begin:]
                case "move":
                    rest = data[:begin] + data[end:]
                    place = draw(st.integers(0, len(rest)))
                    data = rest[:place] + data[begin:end] + rest[place:]
        return data

    return make()


def fuzz(times: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Try so many examples."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=times * TIMES, suppress_health_check=quiet)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


class Web:
    """Answers with ``answers``, one after another, in pieces of so many bytes, and hangs up; then with 200."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.piece = 10**9

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = re.search(rb"(?i)content-length: (\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
                if self.answers:
                    answer = self.answers.pop(0)
                    for start in range(0, len(answer), self.piece):
                        writer.write(answer[start : start + self.piece])
                        await writer.drain()
                        await asyncio.sleep(0)
                    break
                writer.write(http(b""))
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def serving(self) -> "AsyncGenerator[str, None]":
        async with await asyncio.start_server(self.serve, "127.0.0.1", 0) as server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def http(body: bytes, status: bytes = b"200 OK", more: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status, more, len(body), body)


POSTED = [
    http(b"ok"),
    http(b"", b"204 No Content"),
    http(b"", b"429 Too Many Requests", b"Retry-After: 7\r\n"),
    http(b"", b"503 Service Unavailable", b"Retry-After: Mon, 30 Nov 2026 14:00:00 GMT\r\n"),
    http(b"", b"307 Temporary Redirect", b"Location: http://127.0.0.1:1/path\r\n"),
    http(b'{"error": "too large"}', b"413 Content Too Large"),
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: A\r\n\r\n2\r\nok\r\n0\r\nA: b\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" + http(b"{}", b"404 Not Found", b"Connection: close\r\n"),
    b"HTTP/1.0 500 Internal Server Error\r\n\r\nto the end",
]


HEADS = [
    b"HTTP/1.1",
    b"chunked",
    b"Retry-After",
    b"Upgrade: x\r\n",
    b"Content-Encoding: gzip\r\n",
    b"Set-Cookie: a=b; Max-Age=-1\r\n",
    b"Location: //[\r\n",
]


@fuzz(100)
@given(answers=st.lists(mutated(*POSTED, tokens=HEADS), min_size=1, max_size=3), piece=st.sampled_from([1, 10**6]))
def test_whatever_a_post_is_answered_a_result_is_delivered_in_the_end(
    runner: asyncio.Runner, answers: list[bytes], piece: int
) -> None:
    async def scenario() -> None:
        web = Web()
        web.answers, web.piece = list(answers), piece
        forgotten: list[str] = []
        sending = Sender(60, on_forgotten=forgotten.append)
        async with web.serving() as url, aiohttp.ClientSession() as session:
            here.setattr(rp_http, "JOB_DONE_URL", f"{url}/job-done/$ID?gpu=x")
            async with asyncio.timeout(20):
                await sending.send_result(session, {"output": []}, {"id": "a"}, is_stream=True)
            for connection in [each for resting in sending.poster._resting.values() for each in resting]:
                connection.end()
        assert sending.taken or sending.lost or forgotten

    with pytest.MonkeyPatch.context() as here:
        for name in ("FIRST_PAUSE", "LONGEST_PAUSE", "FORGOTTEN_AFTER"):
            here.setattr(sender, name, 0.0)
        asked = sender._retry_after
        here.setattr(sender, "_retry_after", lambda text: 0 * min(asked(text), 1))
        runner.run(scenario())


TAKEN = [
    b'[{"id": "1", "input": {"items": ["a", 2, null]}},'
    b' {"id": "2", "input": {"items": [{"b": [1.5]}], "option": 3}, "webhook": "", "s3Config": {"bucketName": "b"}},'
    b' {"id": "3", "input": "{\\"items\\": [1]}", "batchId": "c"}]',
    b'{"id": "1", "input": {"items": ["\\u00e9"], "first_index": 7}, "delayTime": 12}',
]
BAD = b'{"id": "bad", "input": {"items": ["a", {"b": 2}], "option": 1, "first_index": 0}, "webhook": null}'


class Platform:
    """The session of a worker: one take is answered with ``content``, the next when the worker is told to stop."""

    status, content_type = 200, "application/json"
    headers: ClassVar[dict[str, str]] = {}

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.content_length = len(content)
        self.stop: Callable[[], object] = lambda: None
        self.posted: list[tuple[str, bytes]] = []

    def get(self, url: str, **_: Any) -> "Platform":
        if self.posted or not self.content:
            self.stop()
        return self

    async def __aenter__(self) -> "Platform":
        self.status = 200 if self.content else 204
        return self

    async def __aexit__(self, *_: object) -> None: ...

    def raise_for_status(self) -> None: ...

    async def read(self) -> bytes:
        content, self.content = self.content, b""
        return content

    async def post(self, server: URL, path: str, headers: Any, body: Sequence[bytes], seconds: float) -> post.Answer:
        self.posted.append((path, b"".join(body)))
        return post.Answer(200, "")


class Input(BaseModel):
    items: list[Any]
    option: int = 0


TASK: Any = SimpleNamespace(Input=Input, load=lambda: None, process=lambda item, job: item)


async def taken(content: bytes) -> list[str]:
    """Take jobs from an answer, and do them; return the ids of those that are answered."""
    platform = Platform(content)
    with pytest.MonkeyPatch.context() as here:
        for name in sender.SEAMS:
            here.setattr(rp_job, name, None)
        for name in sender.ROUTES:
            here.setattr(rp_http, name, f"http://x/{name}/$ID?gpu=x")
        here.setattr(loop, "LAST_MOMENT", 0)
        runner = engine.runner(TASK)
        runner.plain = not runner.sender.install()
        runner.sender.poster = platform  # type: ignore[assignment]
        jobs = loop.Loop({"handler": runner.run, "return_aggregate_stream": True}, runner)
        jobs._pause = 0
        jobs._slots.serve()
        platform.stop = jobs.kill_worker
        await asyncio.gather(jobs.get_jobs(platform), jobs.run_jobs(platform))
        assert not jobs.job_progress
    done = {path: json.loads(body) for path, body in platform.posted if "DONE" in path}
    assert all("output" in body or "error" in body for body in done.values())
    return [path.split("/")[2].split("?")[0] for path in done]


@fuzz(100)
@example(b'{"id": "\\ud800", "input": {"items": [1]}}')
@given(content=mutated(*TAKEN, tokens=[b'"id"', b'"input"', b'"1"']))
def test_whatever_a_take_is_answered_the_worker_goes_on(runner: asyncio.Runner, content: bytes) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(20):
            await taken(content)
            assert sorted(await taken(TAKEN[0])) == ["1", "2", "3"]

    runner.run(scenario())


@fuzz(60)
@example(b'{null: "bad", "input": 1}', 0)
@example(b'{"id": %b, "input": 1}' % (b"[" * 2_000 + b"]" * 2_000), 1)
@example(b'{"id": "bad\\ud800", "input": 1}', 2)
@given(bad=mutated(BAD, tokens=[b'"id"', b'"input"', b'"1"'], within=True), place=st.integers(0, 2))
def test_a_job_that_is_none_costs_no_other_of_its_take(runner: asyncio.Runner, bad: bytes, place: int) -> None:
    jobs = [b'{"id": "%d", "input": {"items": [1]}}' % number for number in range(2)]
    jobs.insert(place, bad)
    assert {"0", "1"} <= {*runner.run(taken(b"[%b]" % b", ".join(jobs)))}


ITEMS: list[Any] = ["a", {"b": [1, None]}, "c"]
ENVELOPES = [
    {"index": 0, "success": True, "result": {"content_type": "image/png", "bytes": 3, "data": "YWJj"}},
    {"index": 1, "success": False, "failure": {"type": "ValueError", "message": "m", "details": {"a": 1}}},
    {"index": 2, "success": True, "result_url": "http://bucket/2.json", "bytes": 12},
]
PICTURE = {"content_type": "image/png", "bytes": 3, "url": "http://bucket/0-0.png"}
STATES: list[list[Any]] = [
    [
        {"id": "a-1", "status": "IN_QUEUE"},
        {"id": "a-1", "status": "IN_PROGRESS", "stream": [{"output": ENVELOPES[0]}]},
        {"status": "IN_PROGRESS", "stream": [{"output": {"index": 1, "parts": ["x"]}}, {"output": ENVELOPES[1:2]}]},
        {"status": "COMPLETED", "stream": [], "delayTime": 1},
        {"id": "a-1", "status": "COMPLETED", "output": ENVELOPES, "executionTime": 2},
    ],
    [
        {"id": "a-1", "status": "IN_PROGRESS"},
        {"status": "FAILED", "stream": []},
        {"id": "a-1", "status": "FAILED", "error": "no luck"},
    ],
    [
        {"id": "a-1", "status": "IN_QUEUE"},
        {"status": "COMPLETED", "stream": [{"output": ENVELOPES}]},
        ["a result that is stored", PICTURE],
        "a file that is stored",
    ],
]
ANSWERS = [[json.dumps(state).encode() for state in states] for states in STATES]


WRONG = {each: mutated(each, within=True) | mutated(each, *ANSWERS[0]) for answers in ANSWERS for each in answers}


@st.composite
def answered(draw: st.DrawFn) -> list[bytes]:
    """Make some of an endpoint's answers wrong."""
    answers = [*draw(st.sampled_from(ANSWERS))]
    for place in draw(st.lists(st.integers(0, len(answers) - 1), min_size=1, max_size=2, unique=True)):
        answers[place] = draw(WRONG[answers[place]])
    return answers


@pytest.fixture(scope="module")
def client(runner: asyncio.Runner) -> Iterator[tuple[Client, list[bytes]]]:
    """A client that tries nothing again, and the bodies that it is answered next; then the job is done."""
    bodies: list[bytes] = []

    async def receive(
        method: str, url: str, body: bytes, held: float, most: int, take: Callable[[bytes], object]
    ) -> None:
        state = {"id": "a-1", "status": "IN_QUEUE" if url.endswith("/run") else "COMPLETED", "output": ENVELOPES}
        take(bodies.pop(0) if bodies else json.dumps(state).encode())

    with pytest.MonkeyPatch.context() as here:
        here.setattr(api, "GAP", 0)
        here.setattr(following, "LONGEST_PAUSE", 0)
        stamina.set_testing(True, attempts=1)
        client = Client("x", api_key="key", base_url="http://127.0.0.1:1", told=lambda _: None)
        for http in (client._api._http, client._api._fresh):
            here.setattr(http, "_receive", receive)
        here.setattr(client._bucket, "_receive", lambda *arguments: receive(*arguments))
        yield client, bodies
        runner.run(client.__aexit__())
        stamina.set_testing(False)


def streaming(envelope: dict[str, Any]) -> list[bytes]:
    return [ANSWERS[0][0], json.dumps({"status": "COMPLETED", "stream": [{"output": envelope}]}).encode()]


@fuzz(250)
@example(streaming({"index": 0, "success": True, "result": 1, "result_url": 5}), True)
@example(streaming({**ENVELOPES[1], "index": 0, "result_url": None}), True)
@example([b'{"id": "\\ud800", "status": "IN_QUEUE"}'], False)
@example([*ANSWERS[2][:2], b'{"content_type": "image/png", "bytes": 3, "url": "\\ud800"}'], False)
@given(answers=answered(), known=st.booleans())
def test_whatever_an_endpoint_answers_a_caller_has_each_envelope_or_a_sentence(
    runner: asyncio.Runner, client: tuple[Client, list[bytes]], answers: list[bytes], known: bool
) -> None:
    caller, bodies = client
    bodies[:] = answers

    async def scenario() -> list[Any]:
        job: dict[str, Any] = {"input": {"items": ITEMS} if known else {}}
        async with asyncio.timeout(20):
            then = partial(caller.save_files, folder=folder)
            async with aclosing(caller.stream(job, parts=True, then=then)) as arriving:
                return [each async for each in arriving]

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "files"
        try:
            came = runner.run(scenario())
        except CallFailed as error:
            assert str(error).isprintable()
            return
        finally:
            assert {*Path(made).iterdir()} <= {folder}
    assert all(map(envelopes.encode, came))
    found = [each for each in came if envelopes.is_envelope(each)]
    assert [each["index"] for each in found] == [*range(len(found))]
    assert len(found) == len(ITEMS) or not known


@fuzz(40)
@given(answer=mutated(*map(http, ANSWERS[0]), *POSTED, tokens=HEADS), piece=st.sampled_from([1, 10**6]))
def test_whatever_bytes_a_server_sends_a_call_returns_json_or_a_sentence(
    runner: asyncio.Runner, client: tuple[Client, list[bytes]], answer: bytes, piece: int
) -> None:
    async def scenario() -> None:
        web = Web()
        web.answers, web.piece = [answer], piece
        async with web.serving() as url, httpx2.AsyncClient() as connections:
            calling = Http(connections, secret="key")
            async with asyncio.timeout(20):
                with suppress(CallFailed):
                    assert envelopes.encode(await calling.json("GET", url))

    runner.run(scenario())


LINES: list[Any] = ["a", {"b": 1}, "c", "fails", "e", "f", "g", "h"]


class Endpoint(Client):
    """An endpoint in this process, which has had ``jobs``. In bad ``weather`` a result or an answer gets lost."""

    def __init__(self, jobs: Sequence[list[Any]] = (), weather: str = "") -> None:
        self.endpoint_id = "x"
        self.said: list[str] = []
        self.told = self.said.append
        self.jobs = [*jobs]
        self.weather = weather

    async def submit(self, job: Any) -> str:
        self.jobs.append(json.loads(job)["input"]["items"])
        if self.weather == "lost" and len(self.jobs) == 3:
            raise JobUnknown("It may be queued.")
        return f"job-{len(self.jobs)}"

    async def results(self, job_id: str, items: int | None = None, first: int = 0, *, then: Any = None) -> Any:
        if job_id not in (names := [f"job-{number + 1}" for number in range(len(self.jobs))]):
            raise JobFailed(job_id, "LOST", "the endpoint does not have it")
        for index, item in enumerate(self.jobs[names.index(job_id)]):
            if self.weather == "cut" and (job_id, index) == ("job-2", 1):
                raise CallFailed("The connection broke.")
            yield await then(envelope(index, item))

    @property
    def paid(self) -> "Counter[str]":
        return Counter(json.dumps(item) for items in self.jobs for item in items)


def envelope(index: int, item: Any) -> Any:
    if item == "fails":
        return envelopes.failure(index, "ValueError", "as it was asked to")
    return {"index": index, "success": True, "result": item}


def mapped(endpoint: Endpoint, out: Path, **options: Any) -> bool:
    """Put ``LINES`` through an endpoint; return whether all of them are in ``out``."""
    source = io.BytesIO(b"".join(envelopes.encode(line) + b"\n" for line in LINES))
    try:
        asyncio.run(map_file(endpoint, source, out, job={"input": {}}, shard=2, in_flight=1, **options))
    except CallFailed as error:
        assert all(each.isprintable() for each in (str(error), *getattr(error, "__notes__", ())))
        return False
    assert [json.loads(line) for line in out.read_bytes().splitlines()] == [*map(envelope, count(), LINES)]
    return True


def journals() -> dict[bytes, list[list[Any]]]:
    """Return journals of broken runs, and of one that has ended, each with the jobs that were submitted by then."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        out, endpoint = Path(folder) / "out", Endpoint()
        for endpoint.weather in ("cut", "lost", ""):
            assert mapped(endpoint, out, again=not endpoint.weather) == (not endpoint.weather)
            found[out.with_name("out.journal").read_bytes()] = [*endpoint.jobs]
    return found


JOURNALS = journals()
BROKEN, _, ENDED = JOURNALS


@fuzz(200)
@example(ENDED.replace(b'"result": "c"', b'"result": "d"'), JOURNALS[ENDED], False)
@example(ENDED.replace(b'"job-2"', b'"job-7"'), JOURNALS[ENDED], False)
@example(ENDED.partition(b"\n")[0] + b"\n" + ENDED, JOURNALS[ENDED], False)
@example(b"".join(line for line in BROKEN.splitlines(True) if b'"job-2"' not in line), JOURNALS[BROKEN], False)
@given(journal=mutated(*JOURNALS), which=st.sampled_from([*JOURNALS.values()]), done=st.booleans())
def test_whatever_became_of_a_journal_results_are_right_and_no_line_is_paid_for_twice_without_a_word(
    journal: bytes, which: list[list[Any]], done: bool
) -> None:
    endpoint = Endpoint(which)
    before = endpoint.paid
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        out.with_name("out.journal").write_bytes(journal)
        if done:
            out.write_bytes(b"")
        whole = mapped(endpoint, out)
        assert whole or out.exists() == done
    cut = any(each.startswith(journal) for each in JOURNALS)  # of what is not there any more, nobody knows
    if not (endpoint.said or cut):
        assert {line for line in before if endpoint.paid[line] > before[line]} == set()


def process_batch(items: list[Any], job: Any) -> list[Any]:
    if "raise" in items:
        raise ItemFailed("told to", details=items, restart=len(items) == 1)
    return [item.encode() if item == "file" else item for item in items]


BATCH: Any = SimpleNamespace(process_batch=process_batch, load=lambda: None)
TO_DO: list[list[Any]] = [["a", 2, None], ["b", "file", {"c": 3}], ["a", "raise", 4]]


class Spoken(Process):
    """Runs calls in this process, and says of the first what it is told to say."""

    def __init__(self, first: bytes | None = None) -> None:
        super().__init__()
        self.first = first
        self.said: list[bytes] = []
        self.recorded = b""

    def serve(self, owner: Owner, slots: int, patience: float) -> None:
        super().serve(owner, slots, patience)
        self.start()

    def start(self) -> None:
        self._lives += 1
        self._loads += 1
        self._frames = Frames(Say)
        self.runner = Runner(TaskFunction.of(BATCH), Folders.new(), self.said.append, lambda call: call())
        self.runner._encoders = SimpleNamespace(run=lambda encode: encode())  # type: ignore[assignment]
        self.speak(frame(Say.READY, 0, values(0.0)))

    def speak(self, frames: bytes) -> None:
        """What is not understood ends a process, and so does, in the end, what is understood and leaves a call open."""
        if not self._hear(frames) or (self.attempts and not self.over):
            self.kill()

    def _ask(self, kind: int, number: int, payload: bytes = b"", context: Any = None) -> None:
        if kind in (Ask.JOB, Ask.CALL, Ask.FORGET):
            self.runner.take(kind, number, payload)
        if kind == Ask.CALL and self._loop:
            made = b"".join(self.said)
            self.said.clear()
            self.recorded = self.recorded or made
            first, self.first = self.first, None
            self._loop.call_soon(self.speak, made if first is None else first)

    def kill(self) -> None:
        in_hand, on_purpose = [*self.attempts.values()], self._on_purpose
        self.attempts.clear()
        self._known.clear()
        self.ready = self._ending = self._on_purpose = False
        assert self._loads < LOADS
        self.start()
        if self._owner:
            self._owner.gone(self, in_hand, "ended", on_purpose=on_purpose)

    end = kill


async def done(process: Spoken, items: list[Any]) -> list[bytes]:
    """Do a job in ``process``, and another; return the envelopes of the first."""
    stream = Stream(TaskFunction.of(BATCH), [process], Settings())
    found = []
    async with asyncio.timeout(20):
        for these in (items, ["a", "b"]):
            job = engine.Job(items=these)
            found.append([each.encoded async for chunk in engine.stream_of(stream, these, job) for each in chunk])
    assert [json.loads(each)["result"] for each in found[1]] == ["a", "b"]
    return found[0]


def frames_of(items: list[Any]) -> bytes:
    """Return what a process says of a call."""
    process = Spoken()
    asyncio.run(done(process, items))
    return process.recorded


LATER = [frame(Say.PROGRESS, 1, b"\0\0\0\1", b"3"), frame(Say.PART, 1, b"3"), frame(Say.PONG, 1)]
FRAMES = [
    *map(frames_of, TO_DO),
    b"".join(LATER) + frame(Say.LOGGED, 0, values("INFO", "a line", None)),
    frame(Say.UNUSABLE, 0, values(*astuple(Raised("E", "m", "t")))) + frame(Say.READY, 0, values(1.5)),
]


@fuzz(150)
@example(b"a line of text\n" + FRAMES[0], TO_DO[0])
@example(outcome(1, 0, Flag.SUCCESS | Flag.FILES, [b"mark"]), TO_DO[1])
@example(outcome(1, 0, Flag.SUCCESS, []), TO_DO[0])
@example(frame(Say.RAISED, 1, values(1, None, [])), TO_DO[0])
@example(FRAMES[0].replace(b'{"index": 1', b'{"index": 0'), TO_DO[0])
@example(frame(Say.UNUSABLE, 0, values(*astuple(Raised("E", "m", "t")))), TO_DO[0])
@given(first=mutated(*FRAMES, tokens=LATER), items=st.sampled_from(TO_DO))
def test_whatever_a_process_says_each_item_has_an_outcome_and_the_worker_goes_on(
    first: bytes, items: list[Any]
) -> None:
    found = asyncio.run(done(Spoken(first), items))
    assert re.findall(rb'^{"index": (\d+), "success": ', b"\n".join(found), re.MULTILINE) == [b"0", b"1", b"2"]


def request(method: str, path: str, body: bytes = b"", head: str = "Authorization: Bearer key\r\n") -> bytes:
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}{length}\r\n".encode() + body


OURS = "Authorization: OUR-SECRET\r\n"
ASKED = b'{"input": {"items": ["a", {"b": 1.5}]}, "policy": {"executionTimeout": 5000, "ttl": 10000}, "webhook": null}'
OPENAI = b'{"model": "m", "stream": true, "messages": [{"role": "user", "content": "a"}]}'
REQUESTS = [
    request("POST", "/v2/local/run", ASKED, "Authorization: key\r\nOrigin: http://localhost:8000\r\n"),
    request("POST", "/v2/local/runsync", ASKED, "authorization: bearer key\r\nExpect: 100-continue\r\n"),
    request("POST", "/v2/local/batch", b"[%b, %b]" % (ASKED, ASKED)),
    request("GET", "/v2/local/stream/OUR-JOB"),
    request("GET", "/v2/local/status/OUR-JOB?ttl=10000") + request("POST", "/v2/local/cancel/OUR-JOB"),
    request("POST", "/v2/local/retry/OUR-JOB")
    + request("GET", "/v2/local/health")
    + request("GET", "/v2/local/requests"),
    request("POST", "/v2/local/openai/v1/chat/completions", OPENAI),
    request(
        "POST",
        "/v2/local/job-stream/OUR-WORKER/OUR-JOB?isStream=false",
        b'{"output": {"index": 0, "parts": ["a"]}}',
        OURS,
    ),
    request(
        "POST",
        "/v2/local/job-done/OUR-WORKER/OUR-JOB?isStream=true",
        b'{"output": [{"index": 0}], "stopPod": false}',
        OURS,
    ),
    request(
        "POST",
        "/v2/local/job-done/OUR-WORKER/OUR-JOB?a",
        b'{"status": "IN_PROGRESS", "output": {"progress": [1]}}',
        OURS,
    ),
    request("GET", "/v2/local/job-stop/OUR-WORKER", head=OURS)
    + request("GET", "/v2/local/ping/OUR-WORKER?job_id=OUR-JOB", head=OURS),
    request("GET", "/v2/local/job-take-batch/OUR-WORKER?batch_size=2&job_in_progress=1", head=OURS),
    request("GET", "/") + request("GET", "/form") + request("GET", "/feed", head="Last-Event-ID: 3\r\n"),
    request("POST", "/v2/local/run", head="Authorization: a\r\nTransfer-Encoding: chunked\r\n")
    + b"%x\r\n%b\r\n0\r\n\r\n" % (len(ASKED), ASKED),
    request("GET", "/v2/local/health", head="Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\n"),
]


class Log(logging.Handler):
    """What an endpoint logs."""

    def __init__(self) -> None:
        super().__init__()
        self.traces: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.traces.append(logging.Formatter().formatException(record.exc_info))


@pytest.fixture(scope="module")
def caller() -> Iterator[Caller]:
    here = pytest.MonkeyPatch()
    here.setattr(worker_api, "POLL_SECONDS", 0.05)
    here.setattr(client_api, "STREAM_WAIT", 50)
    here.setattr(client_api, "SYNC_WAIT", 50)
    endpoint = LocalEndpoint(["sleep", "600"], workers=1)
    with endpoint, Caller(endpoint, Path(os.devnull)) as caller:
        yield caller
        endpoint.kill()
    here.undo()


def send(port: int, pieces: Sequence[bytes]) -> None:
    """Send ``pieces``, and no more; return once the other side has hung up."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65_536):
                pass
        except TimeoutError:
            raise
        except OSError:  # it has hung up earlier
            pass


@fuzz(200)
@given(
    asked=mutated(
        *REQUESTS, tokens=[b"OUR-JOB", b"OUR-WORKER", b"chunked", b"Content-Length: 9\r\n", b'"input"', b'"stopPod"']
    ),
    cut=st.floats(0, 1),
)
def test_whatever_is_asked_of_an_endpoint_it_goes_on(caller: Caller, asked: bytes, cut: float) -> None:
    job = caller.run(["a"])
    while not (workers := caller.endpoint.workers.running):
        caller.get("/health")
    caller.as_worker("GET", "job-take")
    for ours, real in ((b"OUR-JOB", job), (b"OUR-WORKER", workers[0].id), (b"OUR-SECRET", workers[0].secret)):
        asked = asked.replace(ours, real.encode())
    log = Log()
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).addHandler(log)
    place = round(cut * len(asked))
    try:
        send(caller.endpoint._port, [asked[:place], asked[place:]])
        assert caller.get("/health").status_code == 200
    finally:
        for name in ("uvicorn.error", "asyncio"):
            logging.getLogger(name).removeHandler(log)
    assert log.traces == []
