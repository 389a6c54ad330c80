"""The OpenAI API of the local endpoint, before a worker in the shape of worker-vllm, which yields what it answers."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import Caller
from tests.test_local_workers import serving, until

HANDLER = """
import json

def event(word):
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": word}}]}

def handler(job):
    route, asked = job["input"]["openai_route"], job["input"]["openai_input"]
    if route == "/v1/models":
        yield {"object": "list", "data": [{"id": "stub", "object": "model", "owned_by": "x"}], "asked": asked}
    elif route == "/v1/embeddings":
        yield {"error": {"message": "no such model", "code": 404}}
    elif not asked.get("stream"):
        yield {"object": "chat.completion", "route": route, "asked": asked}
    else:
        for number, word in enumerate(asked["words"]):
            if word == "wait":
                while not os.path.exists(asked["file"]):
                    time.sleep(0.01)
            elif word == "fail":
                raise ValueError("half-way")
            elif asked.get("raw", True):
                yield f"data: {json.dumps(event(word))}" + "\\n\\n"
            else:
                yield [event(word)] if number % 2 else event(word)
        if asked.get("raw", True):
            yield "data: [DONE]\\n\\n"
"""


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    with serving(tmp_path_factory.mktemp("vllm"), HANDLER) as caller:
        yield caller


def chat(caller: Caller, **asked: Any) -> httpx2.Response:
    url = f"{caller.endpoint.url}/openai/v1/chat/completions"
    return httpx2.post(url, json={"model": "stub", **asked}, headers={"Authorization": "Bearer any"}, timeout=60)


def words(text: str) -> list[str]:
    """Return what the events of an answer say."""
    assert text.endswith("\n\n")
    told = [event.removeprefix("data: ") for event in text.split("\n\n")[:-1]]
    return ["[DONE]" if event == "[DONE]" else json.loads(event)["choices"][0]["delta"]["content"] for event in told]


def test_models_are_what_the_worker_says(vllm: Caller) -> None:
    answer = vllm.get("/openai/v1/models")
    assert (answer.status_code, answer.json()["data"][0]["id"], answer.json()["asked"]) == (200, "stub", None)


def test_a_request_and_its_answer_pass_through_as_they_are(vllm: Caller) -> None:
    text = b'{"model": "stub", "seed": 6687881544318117707, "x": "\\ud83d\\ude00"}'
    answer = vllm.post("/openai/v1/some/other/route", content=text)
    assert answer.status_code == 200
    assert answer.json() == {
        "object": "chat.completion",
        "route": "/v1/some/other/route",
        "asked": {"model": "stub", "seed": 6687881544318117707, "x": "\U0001f600"},
    }


@pytest.mark.parametrize("raw", [True, False])
def test_a_stream_is_server_sent_events(vllm: Caller, raw: bool) -> None:
    answer = chat(vllm, stream=True, words=["a", "b", "c"], raw=raw)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert words(answer.text) == ["a", "b", "c", "[DONE]"]


def test_an_event_is_sent_before_the_next_one_is_there(vllm: Caller, tmp_path: Path) -> None:
    asked = {"model": "stub", "stream": True, "words": ["a", "wait", "b"], "file": str(tmp_path / "go")}
    url = f"{vllm.endpoint.url}/openai/v1/chat/completions"
    with httpx2.stream("POST", url, json=asked, headers={"Authorization": "Bearer any"}, timeout=60) as answer:
        texts = answer.iter_text()
        assert words(next(texts)) == ["a"]
        (tmp_path / "go").touch()
        assert words("".join(texts)) == ["b", "[DONE]"]


def test_a_failed_job_is_an_error_as_the_openai_api_has_it(vllm: Caller) -> None:
    refused = vllm.post("/openai/v1/embeddings", json={"model": "other"})
    assert refused.status_code == 500
    assert "no such model" in refused.json()["error"]["message"]
    answer = chat(vllm, stream=True, words=["fail"])
    assert (answer.status_code, "half-way" in answer.json()["error"]["message"]) == (500, True)


def test_a_job_that_fails_half_way_ends_its_stream_with_an_error(vllm: Caller) -> None:
    answer = chat(vllm, stream=True, words=["a", "fail", "b"])
    first, last = answer.text.removesuffix("\n\n").split("\n\n")
    assert answer.status_code == 200
    assert words(f"{first}\n\n") == ["a"]
    assert "half-way" in json.loads(last.removeprefix("data: "))["error"]["message"]


def test_what_is_no_request_is_refused_as_for_a_job(vllm: Caller) -> None:
    url = "/openai/v1/chat/completions"
    assert vllm.post(url, content=b"{").status_code == 400
    assert vllm.post(url, content=b'{"seed": 1e400}').status_code == 400
    assert vllm.post(url, content=b'{"x": %s}' % (b"[" * 900 + b"]" * 900)).status_code == 400
    assert vllm.post(url, content=b'{"x": "%s"}' % (b"x" * 20 * 2**20)).status_code == 400
    assert vllm.get("/openai").status_code == 404
    assert vllm.post(url, json={}, headers={"Authorization": ""}).status_code == 401


def test_a_caller_who_hangs_up_leaves_nothing_behind(vllm: Caller, tmp_path: Path) -> None:
    asked = {"model": "stub", "stream": True, "words": ["a", "wait"], "file": str(tmp_path / "go")}
    url = f"{vllm.endpoint.url}/openai/v1/chat/completions"
    with httpx2.stream("POST", url, json=asked, headers={"Authorization": "Bearer any"}, timeout=60) as answer:
        next(answer.iter_text())
    os.mknod(tmp_path / "go")
    until(lambda: not vllm.endpoint.queue.held)
    assert vllm.get("/openai/v1/models").status_code == 200
