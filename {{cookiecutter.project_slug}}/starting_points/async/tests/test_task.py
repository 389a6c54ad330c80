"""Yours: what ``task.py`` promises, against a real HTTP server that is slow, fails and hangs up."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest
import stamina
from pydantic import ValidationError

import task

Answer = Callable[[int, bytes], Awaitable[bytes | None]]


def http(status: int, body: Any = None) -> bytes:
    content = json.dumps(body).encode()
    return b"HTTP/1.1 %d -\r\nContent-Length: %d\r\n\r\n%s" % (status, len(content), content)


def call(
    answer: Answer, monkeypatch: pytest.MonkeyPatch, items: list[str], timeout: float = 10, attempts: int = 4
) -> tuple[list[Any], int]:
    """Process ``items`` at once against a server; ``answer`` gets a request's number and body, None hangs up.

    Return the results, exceptions among them, and the number of requests that the server saw.
    """
    requests = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = int(head.lower().split(b"content-length:")[1].split()[0])
                requests += 1
                reply = await answer(requests, await reader.readexactly(size))
                if reply is None:
                    return
                writer.write(reply)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def scenario() -> list[Any]:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            monkeypatch.setenv("UPSTREAM_URL", f"http://127.0.0.1:{port}/words")
            monkeypatch.setenv("UPSTREAM_TIMEOUT", str(timeout))
            task.load()
            job = task.Input(items=items, language="fr")
            async with task._client:
                return await asyncio.gather(*(task.process(item, job) for item in items), return_exceptions=True)

    with stamina.set_testing(True, attempts=attempts):  # the real retries, without the waits between them
        return asyncio.run(scenario()), requests


def test_an_item_is_sent_to_the_service_and_its_answer_is_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    async def echo(number: int, body: bytes) -> bytes:
        return http(200, {"got": json.loads(body)})

    results, requests = call(echo, monkeypatch, ["a", "é"])
    assert results == [{"got": {"text": "a", "language": "fr"}}, {"got": {"text": "é", "language": "fr"}}]
    assert requests == 2


@pytest.mark.parametrize("trouble", [http(500), http(503), http(429), None], ids=["500", "503", "429", "hangs up"])
def test_passing_trouble_is_retried(monkeypatch: pytest.MonkeyPatch, trouble: bytes | None) -> None:
    async def twice(number: int, body: bytes) -> bytes | None:
        return trouble if number <= 2 else http(200, "fine")

    assert call(twice, monkeypatch, ["a"]) == (["fine"], 3)


def test_a_service_that_stays_broken_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(number: int, body: bytes) -> bytes:
        return http(500)

    [error], requests = call(broken, monkeypatch, ["a"])
    assert isinstance(error, httpx2.HTTPStatusError)
    assert requests == 4


def test_a_refusal_is_not_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(number: int, body: bytes) -> bytes:
        return http(404)

    [error], requests = call(refuse, monkeypatch, ["a"])
    assert isinstance(error, httpx2.HTTPStatusError)
    assert requests == 1


def test_a_service_that_is_too_slow_is_a_failure_and_holds_no_other_item_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(number: int, body: bytes) -> bytes | None:
        if json.loads(body)["text"] == "slow":
            await asyncio.Event().wait()
        return http(200, "fine")

    results, _ = call(slow, monkeypatch, ["slow", "quick"], timeout=1, attempts=1)
    assert isinstance(results[0], httpx2.TimeoutException)
    assert results[1] == "fine"


def test_many_items_are_under_way_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    together = asyncio.Barrier(32)

    async def meet(number: int, body: bytes) -> bytes:
        await together.wait()
        return http(200, "met")

    assert call(meet, monkeypatch, ["a"] * 32) == (["met"] * 32, 32)


def test_without_a_service_the_sample_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UPSTREAM_URL", raising=False)
    task.load()
    result = asyncio.run(task.process("three little words", task.Input(items=["x"])))
    assert result == {"text": "three little words", "words": 3}


def test_a_job_cannot_choose_where_the_worker_connects() -> None:
    with pytest.raises(ValidationError, match="upstream_url"):
        task.Input.model_validate({"items": ["x"], "upstream_url": "http://169.254.169.254"})
