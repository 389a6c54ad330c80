"""The client returns what the worker made, each envelope once and in order, or a sentence that says why not."""

import asyncio
import gzip
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from rich.text import Text

from aggregating_worker.client import CallFailed, Client, Envelope, JobFailed, http
from aggregating_worker.client import client as following
from aggregating_worker.client import command as command_line
from aggregating_worker.client.command import _note as noted
from aggregating_worker.client.job import Job
from aggregating_worker.local import LocalEndpoint
from tests.calling import (
    KEY,
    Answer,
    Request,
    call,
    client,
    command,
    environment,
    job_of,
    lines,
    proxy,
    serve_http,
)
from tests.conftest import LIBRARY, Caller, Serve

STORING = """
import aggregating_worker.before_sdk, os, runpod
def handler(job):
    for index, name in enumerate(job["input"]["items"]):
        yield {"index": index, "success": True, "result_url": os.environ["BUCKET"] + "/" + name, "bytes": 1_000_002}
runpod.serverless.start({"handler": handler, "return_aggregate_stream": True})
"""
"""A worker that stores all its results in a bucket."""


@pytest.fixture(scope="module")
def echo(serve: Serve) -> Caller:
    return serve("hostile")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A store of JSON strings of 1 MB, which is busy once for each, lacks ``gone``, and must not be sent a key."""
    asked: Counter[str] = Counter()

    def answer(request: Request) -> Answer:
        asked[request.path] += 1
        if "authorization" in request.headers:
            return Answer(400)
        if request.path == "/gone":
            return Answer(403)
        if request.path == "/moved":
            return Answer(307, headers={"Location": "/here"})
        return Answer(200 if asked[request.path] > 1 else 503, b'"%s"' % (request.path[-1:].encode() * 1_000_000))

    with serve_http(answer) as address:
        yield address


@pytest.fixture(scope="module")
def storing(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with (
        (tmp_path_factory.mktemp("storing") / "worker.log").open("wb") as log,
        LocalEndpoint([sys.executable, "-u", "-c", STORING], env={"BUCKET": bucket}, log=log) as endpoint,
    ):
        yield endpoint.base_url


def envelopes_of(items: list[Any]) -> list[Any]:
    return [{"index": index, "success": True, "result": item} for index, item in enumerate(items)]


async def collect(caller: Client, job: Job) -> list[Envelope]:
    return [envelope async for envelope in caller.stream(job)]


@pytest.mark.parametrize("operation", ["run", "runsync", "stream"])
def test_each_operation_prints_an_envelope_a_line(echo: Caller, operation: str, tmp_path: Path) -> None:
    items = ["é😀\u2028", {"a": [1, None]}, 3]
    file = tmp_path / "job.json"
    file.write_bytes(job_of(*items))
    finished = client(echo.endpoint.base_url, operation, str(file))
    assert (finished.returncode, lines(finished.stdout), finished.stderr) == (0, envelopes_of(items), b"")


def test_a_job_can_come_from_standard_input_and_a_failed_item_makes_the_status_1(echo: Caller) -> None:
    finished = client(echo.endpoint.base_url, "run", "-", given=job_of(1, "raise"))
    assert finished.returncode == 1
    assert [envelope["success"] for envelope in lines(finished.stdout)] == [True, False]


@pytest.mark.parametrize("operation", ["run", "runsync", "stream"])
def test_local_is_the_local_endpoint_whatever_the_environment_says(
    echo: Caller, operation: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfdbinary: Any
) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
    monkeypatch.setenv("RUNPOD_ENDPOINT_ID", "another")
    monkeypatch.setattr(command_line, "LOCAL", echo.endpoint.base_url)
    file = tmp_path / "job.json"
    file.write_bytes(job_of(1, 2))
    with pytest.raises(SystemExit) as end:
        command_line.main([operation, str(file), "--local"])
    assert (end.value.code, lines(capfdbinary.readouterr().out)) == (0, envelopes_of([1, 2]))


@pytest.mark.parametrize("operation", ["run", "runsync", "stream"])
def test_a_job_that_fails_is_the_platforms_message_and_the_status_2(echo: Caller, operation: str) -> None:
    finished = client(echo.endpoint.base_url, operation, "-", given=job_of())
    assert (finished.returncode, finished.stdout) == (2, b"")
    assert finished.stderr.endswith(b" FAILED: No items provided.\n")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (b"{", b"The job in - is not JSON: "),
        (b"[1]", b"The job in - should be an object with an input"),
        (b'{"input": 1e999}', b"The job in - is not JSON: 1e999 is out of range.\n"),
        (
            b'{"input": {"items": [1]}, "policy": 3}',
            b"127.0.0.1 answered 400: bad request: body: policy must be an obj",
        ),
    ],
)
def test_what_is_not_a_job_is_refused_in_a_sentence(echo: Caller, given: bytes, sentence: bytes) -> None:
    finished = client(echo.endpoint.base_url, "run", "-", given=given)
    assert (finished.returncode, finished.stdout) == (2, b"")
    assert finished.stderr.startswith(sentence)
    assert finished.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        (
            "RUNPOD_API_KEY",
            "",
            r"^RUNPOD_API_KEY is not set: make a key at https://console\.runpod\.io/user/settings, under API Keys\.$",
        ),
        ("RUNPOD_API_KEY", "sec\nret", r"^RUNPOD_API_KEY is not an API key: .*settings, under API Keys\.$"),
        ("RUNPOD_API_KEY", "sécret", r"^RUNPOD_API_KEY is not an API key: .*settings, under API Keys\.$"),
        ("RUNPOD_ENDPOINT_ID", " ", "^RUNPOD_ENDPOINT_ID is not set: .*Runpod console shows it\\.$"),
        ("RUNPOD_ENDPOINT_BASE_URL", "127.0.0.1:8000/v2", "^RUNPOD_ENDPOINT_BASE_URL should be a web address"),
        ("RUNPOD_ENDPOINT_BASE_URL", "http://127.0.0.1:65536", "^RUNPOD_ENDPOINT_BASE_URL should be a web address"),
        ("RUNPOD_ENDPOINT_BASE_URL", "ftp://127.0.0.1", "^RUNPOD_ENDPOINT_BASE_URL should be a web address"),
    ],
)
def test_what_is_missing_in_the_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    for variable, usable in environment("http://127.0.0.1:1/v2").items():
        monkeypatch.setenv(variable, usable)
    monkeypatch.setenv(name, value)
    with pytest.raises(CallFailed, match=sentence):
        Client()


def test_the_command_without_a_key_names_the_local_endpoint_too() -> None:
    env = {name: value for name, value in environment("http://127.0.0.1:1/v2").items() if name != "RUNPOD_API_KEY"}
    done = subprocess.run(command("run", "-"), input=job_of(1), cwd=LIBRARY, env=env, capture_output=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(b"RUNPOD_API_KEY is not set: make a key at ")
    assert done.stderr.endswith(b" Or --local: it calls the endpoint of make serve.\n")


@pytest.mark.parametrize("proxy", ["nonsense://127.0.0.1", "http://[::", "socks5://127.0.0.1"])
def test_a_proxy_that_cannot_be_used_is_a_sentence(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(CallFailed, match=r"^The proxy in HTTP_PROXY, HTTPS_PROXY or ALL_PROXY cannot be used: .+\.$"):
        Client("id", api_key="key")


def test_a_stream_whose_connection_is_cut_gives_each_envelope_once_and_in_order(
    echo: Caller, fifos: list[Path]
) -> None:
    """The platform streams each chunk once, so the chunks in the broken answer are only in the aggregate."""
    cut: list[str] = []

    def meddle(request: Request, forward: Callable[[], Answer]) -> Answer:
        answer = forward()
        if "/stream/" in request.path and b'"output"' in answer.body and len(cut) < 3:
            cut.append(request.path)
            answer.sent = len(answer.body) // 2
            if len(cut) < 3:
                fifos[len(cut)].write_text("on")  # what follows it is in a later answer
        return answer

    numbers = list(range(300))
    items = [*numbers, {"read": str(fifos[1])}, *numbers, {"read": str(fifos[2])}, *numbers]
    made = envelopes_of([*numbers, "on", *numbers, "on", *numbers])
    with proxy(echo.endpoint.base_url, meddle) as base_url:
        assert call(base_url, lambda caller: collect(caller, {"input": {"items": items}})) == made
    assert len(cut) == 3


def test_a_result_too_large_to_be_streamed_comes_from_the_aggregate(echo: Caller) -> None:
    job = {"input": {"items": [0, {"bytes": 1_500_000}, 2]}}
    given = call(echo.endpoint.base_url, lambda caller: collect(caller, job))
    assert given == envelopes_of([0, "x" * 1_500_000, 2])


def test_a_result_that_the_bucket_does_not_give_is_its_items_failure(storing: str) -> None:
    finished = client(storing, "run", "-", given=job_of("moved", "gone"))
    assert finished.returncode == 1
    moved, gone = lines(finished.stdout)
    assert moved == {"index": 0, "success": True, "result": "e" * 1_000_000}
    assert gone["failure"]["type"] == "ResultUnavailable"
    assert "403" in gone["failure"]["message"]


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "data:application/json,1",
        "htp:/x",
        "//127.0.0.1/result",
        "http://127.0.0.1:99999999/",
        "http://[::1",
    ],
)
def test_a_result_is_fetched_from_a_web_address_only_and_otherwise_it_is_a_sentence(url: str) -> None:
    stored = {"index": 0, "success": True, "result_url": url, "bytes": 1}
    body = json.dumps({"id": "a", "status": "COMPLETED", "output": [stored]}).encode()
    with serve_http(lambda _: Answer(200, body)) as address:
        [envelope] = call(address, lambda caller: caller.runsync({"input": {"items": [1]}}))
    assert envelope["failure"]["type"] == "ResultUnavailable"
    said = f"The result is stored in a bucket and could not be fetched. {url} is not a web address."
    assert envelope["failure"]["message"] == said


@pytest.mark.parametrize("status", [200, 400])
def test_an_answer_without_an_end_is_cut_off(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr(http, "MAX_ANSWER", 1_000_000)
    monkeypatch.setattr(http, "GRACE", 10.0)
    monkeypatch.setattr(http, "WORDS", None)
    monkeypatch.setattr(http, "ATTEMPTS", 1)
    endless = Answer(status, b"1" * 1_000, drip=0.0)
    with serve_http(lambda _: endless) as address, pytest.raises(CallFailed, match=r"than 1000000 bytes|answered 400"):
        call(address, lambda caller: caller.status("a"))


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("/", "maximum allowed redirects"),
        ("ftp://127.0.0.1/x", "protocol"),
        (
            "http://127.0.0.1:99999999/",
            "^No usable answer from 127.0.0.1: it redirects to something that is not a web a",
        ),
    ],
)
def test_a_redirect_is_followed_to_a_web_address_only(location: str, reason: str) -> None:
    moved = Answer(302, headers={"Location": location})
    with serve_http(lambda _: moved) as address, pytest.raises(CallFailed, match=reason):
        asyncio.run(fetch(address))


async def fetch(url: str) -> Any:
    bucket = http.Http(httpx2.AsyncClient(follow_redirects=True, max_redirects=2))
    try:
        return await bucket.json("GET", url)
    finally:
        await bucket.close()


@pytest.mark.parametrize(
    ("status", "sentence"), [(200, "No usable answer from 127.0.0.1: it took too long."), (400, "answered 400: Bad")]
)
def test_an_answer_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch, status: int, sentence: str) -> None:
    monkeypatch.setattr(http, "GRACE", 0.2)
    monkeypatch.setattr(http, "WORDS", 0.1)
    monkeypatch.setattr(http, "ATTEMPTS", 2)
    dripping = Answer(status, b"1", drip=0.01)
    with serve_http(lambda _: dripping) as address, pytest.raises(CallFailed, match=sentence):
        call(address, lambda caller: caller.status("a"))


def test_a_long_answer_has_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "GRACE", 0.2)
    monkeypatch.setattr(http, "SLOWEST", 1_000)
    monkeypatch.setattr(http, "MAX_ANSWER", 50_000)
    slow = Answer(200, b"1" * 1_000, drip=0.01)
    with serve_http(lambda _: slow) as address, pytest.raises(CallFailed, match="more than 50000 bytes"):
        call(address, lambda caller: caller.status("a"))


def test_a_compressed_answer_is_read_and_has_the_same_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_ANSWER", 1_000_000)
    body = gzip.compress(b'{"id": "a", "status": "IN_QUEUE"}')
    bomb = gzip.compress(bytes(200_000_000), 1)

    def answer(request: Request) -> Answer:
        return Answer(200, bomb if "bomb" in request.path else body, {"Content-Encoding": "gzip"})

    with serve_http(answer) as address:
        assert call(address, lambda caller: caller.status("a"))["id"] == "a"
        with pytest.raises(CallFailed, match="more than 1000000 bytes"):
            call(address, lambda caller: caller.status("bomb"))


def test_the_key_does_not_follow_a_redirect_to_another_host() -> None:
    received: list[Request] = []

    def elsewhere(request: Request) -> Answer:
        received.append(request)
        return Answer(200, b"{}")

    with (
        serve_http(elsewhere) as other,
        serve_http(lambda _: Answer(302, headers={"Location": other})) as address,
        pytest.raises(CallFailed, match="answered 302"),
    ):
        call(address, lambda caller: caller.run({"input": {}}))
    assert received == []


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (Answer(200, b"<html>"), "^No usable answer from 127.0.0.1: it is not JSON: "),
        (Answer(200, b'{"id": "a", "status": "IN_QUEUE"}', sent=9), "^No usable answer from 127.0.0.1: "),
        (Answer(200, b"[" * 100_000), "nested too deeply"),
        (Answer(200, b'{"id": "a", "status": NaN}'), "NaN is not JSON"),
        (Answer(200, b"[1]"), "did not answer with a JSON object"),
        (Answer(200, b"{}"), "not the state of a job"),
        (Answer(200, b'{"id": 3, "status": "IN_QUEUE"}'), "not the state of a job"),
        (Answer(200, b'{"id": "a", "status": "DREAMING"}'), "not the state of a job"),
        (Answer(200, b'{"id": "a", "status": "COMPLETED", "output": "text"}'), "Is another worker behind"),
        (Answer(200, b'{"id": "a", "status": "COMPLETED", "output": [{"index": true}]}'), "Is another worker behind"),
        (Answer(200, b'{"id": "a", "status": "COMPLETED"}'), "Is another worker behind"),
        (
            Answer(
                200, b'{"id": "a", "status": "FAILED", "error": {"\x1b[31m": "\\ud800"}}'.replace(b"\x1b", b"\\u001b")
            ),
            "FAILED: ",
        ),
        (Answer(200, b'{"id": "a", "status": "CANCELLED"}'), "Job a CANCELLED: the platform gave no reason"),
        (Answer(502, b"<html>\x1b[31m"), "answered 502: Bad Gateway"),
        (Answer(200, b'{"id": "a", "status": "FAILED", "error": "%s"}' % (b"x" * 3_000_000)), "FAILED: x{500}\\.$"),
        (
            Answer(200, b'{"id": "a", "status": "FAILED", "error": ["%s"]}' % (b"x" * 3_000_000)),
            r'FAILED: \["x{498}\.$',
        ),
        (
            Answer(401, json.dumps({"error": f"{KEY} is\nunknown"}).encode()),
            "answered 401: … is unknown. Check RUNPOD_API_KEY",
        ),
        (Answer(404, b'{"title": "no such endpoint"}'), "answered 404: no such endpoint. Check the endpoint's id"),
        (Answer(400, b'{"error": "%s"}' % (b"x" * 9_999)), "answered 400: x{500}\\.$"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_whatever_an_endpoint_answers_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, answer: Answer, sentence: str
) -> None:
    monkeypatch.setattr(http, "ATTEMPTS", 1)
    with serve_http(lambda _: answer) as address, pytest.raises(CallFailed, match=sentence) as refused:
        call(address, lambda caller: caller.runsync({"input": {"items": [1]}}))
    assert str(refused.value).isprintable()
    assert KEY not in str(refused.value)


@pytest.mark.parametrize("indices", [[0], [0, 0], [1, 0], [0, 1, 2], []], ids=str)
def test_an_aggregate_without_one_envelope_for_each_item_is_refused(indices: list[int]) -> None:
    output = [{"index": index, "success": True, "result": None} for index in indices]
    body = json.dumps({"id": "a", "status": "COMPLETED", "output": output, "stream": []}).encode()
    with serve_http(lambda _: Answer(200, body)) as address, pytest.raises(CallFailed, match="one envelope for each"):
        call(address, lambda caller: caller.run({"input": {"items": [1, 2]}}))


@pytest.mark.parametrize("index", [2, 10**30])
def test_an_envelope_too_many_is_a_sentence(index: int) -> None:
    chunk = {"output": {"index": index, "success": True, "result": None}}
    body = json.dumps({"id": "a", "status": "IN_PROGRESS", "stream": [chunk]}).encode()
    with serve_http(lambda _: Answer(200, body)) as address, pytest.raises(CallFailed, match="that it does not have"):
        call(address, lambda caller: caller.run({"input": {"items": [1, 2]}}))


def test_a_job_may_be_a_slice_of_a_longer_list() -> None:
    output = [{"index": index, "success": True, "result": index} for index in (400, 401)]
    body = json.dumps({"id": "a", "status": "COMPLETED", "output": output, "stream": [{"output": output[0]}]}).encode()
    job = {"input": {"items": [1, 2], "first_index": 400}}
    with serve_http(lambda _: Answer(200, body)) as address:
        assert call(address, lambda caller: caller.run(job)) == output
        assert call(address, lambda caller: caller.runsync(job)) == output


GROWING = """
import aggregating_worker.before_sdk, runpod
def handler(job):
    for index, fifo in enumerate(job["input"]["items"]):
        yield {"index": index, "parts": ["a"]} if index else [{"index": index, "parts": ["a"]}]
        open(fifo).read()
        yield {"index": index, "parts": ["b", {"c": 1}]}
        yield {"index": index, "success": True, "result": "whole"}
runpod.serverless.start({"handler": handler, "return_aggregate_stream": True})
"""
"""A worker whose items wait for a pipe between their first part and the second."""


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with (
        (tmp_path_factory.mktemp("growing") / "worker.log").open("wb") as log,
        LocalEndpoint([sys.executable, "-u", "-c", GROWING], log=log) as endpoint,
    ):
        yield endpoint.base_url


GROWN = [
    [
        {"index": index, "parts": ["a"]},
        {"index": index, "parts": ["b", {"c": 1}]},
        {"index": index, "success": True, "result": "whole"},
    ]
    for index in (0, 1)
]
"""What two items of ``growing`` stream."""


def by_item(printed: bytes) -> list[Any]:
    """Sort what was printed by item: in which order two items' lines come is not promised."""
    return sorted(lines(printed), key=lambda each: int(each["index"]))


def test_parts_arrive_while_their_item_runs(growing: str, fifo: Path) -> None:
    async def follow(caller: Client) -> list[Any]:
        arrived = []
        async with aclosing(caller.stream({"input": {"items": [str(fifo)]}}, parts=True)) as arriving:
            async for each in arriving:
                arrived.append(each)
                if len(arrived) == 1:
                    await asyncio.to_thread(fifo.write_text, "go on")
        return arrived

    assert call(growing, follow) == GROWN[0]


def test_who_does_not_ask_for_parts_gets_envelopes_only(growing: str, tmp_path: Path) -> None:
    job = {"input": {"items": ["/dev/null"] * 2}}
    envelopes = [GROWN[0][2], GROWN[1][2]]
    assert call(growing, lambda caller: caller.run(job)) == envelopes
    assert call(growing, lambda caller: caller.runsync(job)) == envelopes
    assert call(growing, lambda caller: collect(caller, job)) == envelopes
    out = tmp_path / "out"
    assert client(growing, "map", "-", "--out", str(out), given=b'"/dev/null"\n' * 2).returncode == 0
    assert lines(out.read_bytes()) == envelopes


def test_the_command_prints_parts_where_it_is_told_to_or_on_a_terminal(growing: str) -> None:
    given = job_of("/dev/null", "/dev/null")
    assert lines(client(growing, "stream", "-", given=given).stdout) == [GROWN[0][2], GROWN[1][2]]
    assert by_item(client(growing, "stream", "--parts", "-", given=given).stdout) == GROWN[0] + GROWN[1]
    terminal, shown = os.openpty()
    with subprocess.Popen(
        command("stream", "-"), cwd=LIBRARY, env=environment(growing), stdin=subprocess.PIPE, stdout=shown
    ) as process:
        os.close(shown)
        process.communicate(given, timeout=30)
    with os.fdopen(terminal, "rb", buffering=0) as screen:
        assert by_item(screen.read(10_000)) == GROWN[0] + GROWN[1]


def test_what_a_worker_streams_again_after_an_items_envelope_is_not_yielded_again() -> None:
    stream = [{"output": each} for each in (*GROWN[0], *GROWN[0], *GROWN[1])]
    output = [GROWN[0][2], GROWN[1][2]]
    body = json.dumps({"id": "a", "status": "COMPLETED", "output": output, "stream": stream}).encode()

    async def follow(caller: Client) -> list[Any]:
        return [each async for each in caller.stream({"input": {"items": [1, 2]}}, parts=True)]

    with serve_http(lambda _: Answer(200, body)) as address:
        arrived = call(address, follow)
    assert [each for each in arrived if each["index"] == 0] == GROWN[0]
    assert [each for each in arrived if each["index"] == 1] == GROWN[1]


def test_a_stream_that_repeats_itself_still_ends() -> None:
    """As if the endpoint did not remove the chunks that it has handed out."""
    output = [{"index": index, "success": True, "result": index} for index in range(2)]
    stream = [{"output": "a part of a chunk"}, {"output": output[0]}, {"output": output}, 3]
    body = json.dumps({"id": "a", "status": "COMPLETED", "output": output, "stream": stream}).encode()
    with serve_http(lambda _: Answer(200, body)) as address:
        assert call(address, lambda caller: caller.run({"input": {"items": [1, 2]}})) == output
        assert call(address, lambda caller: caller.run({"input": {}})) == output


def test_a_status_that_does_not_come_is_not_waited_for_when_every_envelope_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if the platform had refused the job's final body for good."""
    monkeypatch.setattr(following, "SETTLED", 0.3)
    chunks = [{"output": each} for each in envelopes_of([1, 2])]
    asked: list[str] = []

    def answer(request: Request) -> Answer:
        asked.append(request.path)
        new = [chunks.pop()] if chunks and "/stream/" in request.path else []
        return Answer(200, json.dumps({"id": "a", "status": "IN_PROGRESS", "stream": new}).encode())

    with serve_http(answer) as address:
        assert call(address, lambda caller: caller.run({"input": {"items": [1, 2]}})) == envelopes_of([1, 2])
    assert not [path for path in asked if "cancel" in path]


def test_runsync_goes_on_waiting_when_its_time_has_passed(echo: Caller) -> None:
    def meddle(request: Request, forward: Callable[[], Answer]) -> Answer:
        answer = forward()
        if request.path.endswith("/runsync"):
            answer.body = json.dumps({"id": json.loads(answer.body)["id"], "status": "IN_PROGRESS"}).encode()
        return answer

    with proxy(echo.endpoint.base_url, meddle) as base_url:
        assert call(base_url, lambda caller: caller.runsync({"input": {"items": [1, 2]}})) == envelopes_of([1, 2])


def test_a_job_that_the_endpoint_has_forgotten_is_lost(echo: Caller) -> None:
    async def ask(caller: Client) -> None:
        async for _ in caller.results("nobody", 3):
            pass

    with pytest.raises(JobFailed, match=r"^Job nobody LOST: the endpoint does not have it, or no longer\.$") as lost:
        call(echo.endpoint.base_url, ask)
    assert lost.value.state == "LOST"


def test_a_job_that_is_no_longer_waited_for_is_cancelled(echo: Caller, fifo: Path) -> None:
    async def leave(caller: Client) -> str:
        job_id = await caller.submit({"input": {"items": [0, {"read": str(fifo)}]}})
        async with aclosing(caller.results(job_id, 2)) as envelopes:
            async for _ in envelopes:
                break
        return job_id

    job_id = call(echo.endpoint.base_url, leave)
    assert echo.status(job_id)["status"] == "CANCELLED"


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_cancels_the_job_and_is_a_sentence(echo: Caller, fifo: Path) -> None:
    started = command("stream", "-")
    with subprocess.Popen(
        started,
        cwd=LIBRARY,
        env=environment(echo.endpoint.base_url),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(job_of("mine", {"read": str(fifo)}))
        process.stdin.close()
        assert json.loads(process.stdout.readline())["result"] == "mine"
        process.send_signal(signal.SIGINT)
        said = process.stderr.read() if process.stderr else b""
    assert process.returncode == 130
    assert said == b"Interrupted. The job was cancelled.\n"
    [mine] = [job for job in echo.endpoint.queue.jobs.values() if b'"mine"' in job.request]
    assert mine.status == "CANCELLED"


def test_a_job_that_cannot_be_cancelled_is_not_said_to_be(echo: Caller, fifo: Path) -> None:
    def meddle(request: Request, forward: Callable[[], Answer]) -> Answer:
        return Answer(500) if "/cancel/" in request.path else forward()

    said: list[str] = []

    async def leave(base_url: str) -> bool:
        async with Client("local", api_key=KEY, base_url=base_url, told=said.append) as client:
            async with aclosing(client.stream({"input": {"items": ["mine", {"read": str(fifo)}]}})) as arriving:
                async for _ in arriving:
                    break
            return client.leaves_jobs

    with proxy(echo.endpoint.base_url, meddle) as address:
        assert asyncio.run(leave(address))
    assert said[-1].endswith(" could not be cancelled, and may go on.")


def test_on_a_terminal_progress_is_in_items_and_on_standard_error(echo: Caller) -> None:
    terminal, error = os.openpty()
    with subprocess.Popen(
        command("run", "-"),
        cwd=LIBRARY,
        env=environment(echo.endpoint.base_url) | {"TERM": "xterm"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=error,
    ) as process:
        os.close(error)
        results, _ = process.communicate(job_of(*range(7)), timeout=30)
    assert lines(results) == envelopes_of(list(range(7)))
    with os.fdopen(terminal, "rb", buffering=0) as shown:
        assert b"7/7" in shown.read(100_000)


def test_on_a_terminal_the_bar_shows_what_the_latest_item_says_of_its_progress(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(following, "LOOKED", 0.0)
    seen: list[Any] = []
    progress = [{"index": 0, "value": 1}, {"index": 3, "value": ["[/red]", "x" * 99]}]
    running = json.dumps({"id": "a", "status": "IN_PROGRESS", "output": {"progress": progress}}).encode()
    done = json.dumps({"id": "a", "status": "COMPLETED", "output": envelopes_of([1])}).encode()

    async def follow(caller: Client) -> list[Envelope]:
        return [each async for each in caller.stream({"input": {"items": [1]}}, progress=seen.append)]

    with serve_http(lambda _: Answer(200, done if seen else running)) as address:
        assert call(address, follow) == envelopes_of([1])
    assert seen[0] == progress
    note = noted(progress)
    assert Text.from_markup(note).plain == f'(item 3: ["[/red]", "{"x" * 28})'
    assert noted([]) == noted([3]) == ""


def test_a_reader_that_leaves_ends_it_quietly(echo: Caller) -> None:
    read, write = os.pipe()
    with subprocess.Popen(
        command("stream", "-"),
        cwd=LIBRARY,
        env=environment(echo.endpoint.base_url),
        stdin=subprocess.PIPE,
        stdout=write,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(write)
        os.close(read)
        _, said = process.communicate(job_of(*range(100)), timeout=30)
    assert (process.returncode, said) == (141, b"")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "no-such-file.json"], b"no-such-file.json: No such file or directory.\n"),
        (["map", "-", "--out", "x", "--shard", "0"], b"'0' is not a number from 1 to 10000"),
        (["map", "-", "--out", "no-such-folder/x"], b"no-such-folder/x.journal: No such file or directory.\n"),
    ],
)
def test_a_bad_argument_is_a_sentence(arguments: list[str], sentence: bytes) -> None:
    finished = client("http://127.0.0.1:1/v2", *arguments)
    assert (finished.returncode, finished.stdout) == (2, b"")
    assert sentence in finished.stderr


def test_while_nothing_answers_that_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LONGEST_WAIT", 0.01)
    said: list[str] = []

    async def ask() -> None:
        async with Client("local", api_key=KEY, base_url="http://127.0.0.1:9/v2", told=said.append) as client:
            for _ in range(2):
                with pytest.raises(CallFailed):
                    await client.status("job")

    asyncio.run(ask())
    assert said == ["No usable answer from 127.0.0.1 yet: it is tried again."]
