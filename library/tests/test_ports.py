"""Three public workers, ported (``tests/ports``): who called them before sends the same, and gets the same.

What the originals answer is read from their sources, and from what the SDK (1.12.0, ``rp_job``) makes of it: of a plain
handler's dict, ``error`` fails the job, and the rest is its output; a generator's first ``{"error": …}`` fails it with
that as text. Where a port answers something else, a comment says what the original does.
"""

import base64
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest

from aggregating_worker.local import LocalEndpoint
from tests.conftest import HANDLER, LIBRARY, TESTS, Caller, Serve
from tests.ports import _old_form
from tests.store import s3, serve_s3

PORTS = TESTS / "ports"
COMFYUI = str(PORTS / "stubs" / "comfyui.py")
PAGE = LIBRARY.parent / "docs" / "porting.md"


@pytest.fixture(scope="module")
def serve_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Serve an endpoint whose worker runs a port, with what stands in for its model beside it."""
    with ExitStack() as stack:

        def start(port: str, **env: str) -> Caller:
            folder = tmp_path_factory.mktemp(port)
            shutil.copy(HANDLER, folder)
            for stub in (PORTS / "stubs").glob("*.py"):
                shutil.copy(stub, folder)
            shutil.copy(PORTS / f"{port}.py", folder / "task.py")
            log = tmp_path_factory.mktemp("log") / "worker.log"
            output = stack.enter_context(log.open("wb"))
            endpoint = LocalEndpoint(cwd=folder, env=env, log=output)
            return stack.enter_context(Caller(stack.enter_context(endpoint), log))

        yield start


@pytest.fixture(scope="module")
def whisper(serve_port: Serve) -> Caller:
    return serve_port("whisper", RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS="true")


@pytest.fixture(scope="module")
def comfyui(serve_port: Serve) -> Caller:
    return serve_port("comfyui", COMFYUI=COMFYUI)


@pytest.fixture(scope="module")
def vllm(serve_port: Serve) -> Caller:
    return serve_port("vllm")


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """Serve a recording; nothing else is there."""

    class Recording(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/gettysburg.wav" else 404)
            self.end_headers()
            self.wfile.write(SPEECH.encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Recording) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def bucket() -> Iterator[dict[str, str]]:
    """Serve S3; return the settings for it."""
    with serve_s3("results") as settings:
        yield settings


def answer(caller: Caller, request: Any) -> dict[str, Any]:
    """Return what ``/runsync`` answers to a request, without the id and the times."""
    return outcome(caller.post("/runsync", json={"input": request}).json())


def outcome(state: dict[str, Any]) -> dict[str, Any]:
    return {name: state[name] for name in ("status", "output", "error") if name in state}


def completed(output: Any) -> dict[str, Any]:
    return {"status": "COMPLETED", "output": output}


def failed(error: str, **output: Any) -> dict[str, Any]:
    return {"status": "FAILED", "error": error, **output}


def streamed(caller: Caller, request: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return the chunks of a request that is sent with ``/run``, and how it ends."""
    job_id = caller.submit({"input": request})
    return [*caller.stream(job_id)], outcome(caller.status(job_id))


def items(state: dict[str, Any]) -> list[Any]:
    """Return of each item of a job its result, or its failure, in their order."""
    assert state["status"] == "COMPLETED"
    assert [envelope["index"] for envelope in state["output"]] == [*range(len(state["output"]))]
    return [envelope["result"] if envelope["success"] else envelope["failure"] for envelope in state["output"]]


def in_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


SPEECH = "Four score\nand seven years ago"
GETTYSBURG = {
    "segments": [
        {
            "id": 1,
            "seek": 100,
            "start": 0.0,
            "end": 2.0,
            "text": " Four score",
            "tokens": [50364, 0],
            "temperature": 0.0,
            "avg_logprob": -0.25,
            "compression_ratio": 0.5,
            "no_speech_prob": 0.125,
        },
        {
            "id": 2,
            "seek": 100,
            "start": 2.0,
            "end": 4.0,
            "text": " and seven years ago",
            "tokens": [50364, 1],
            "temperature": 0.0,
            "avg_logprob": -0.25,
            "compression_ratio": 0.5,
            "no_speech_prob": 0.125,
        },
    ],
    "detected_language": "en",
    "transcription": "Four score and seven years ago",
    "translation": None,
    "device": "cpu",
    "model": "turbo",
}
"""worker-faster_whisper, ``src/predict.py``: ``results`` in ``predict``; keys in this order."""


class TestWhisper:
    def test_a_test_of_the_old_form_is_as_short_as_the_page_says(self, whisper: Caller) -> None:
        _old_form.test_an_old_request_has_its_old_answer(lambda: whisper)

    def recording(self, **options: Any) -> dict[str, Any]:
        return {"audio_base64": in_base64(SPEECH.encode()), "model": "turbo", **options}

    def test_its_own_test_input_is_answered_with_the_bare_result(self, whisper: Caller, site: str) -> None:
        """``test_input.json`` of the original, but for where the recording is."""
        request = {
            "audio": f"{site}/gettysburg.wav",
            "model": "turbo",
            "transcription": "plain text",
            "translate": False,
            "temperature": 0,
            "best_of": 5,
            "beam_size": 5,
            "suppress_tokens": "-1",
            "condition_on_previous_text": False,
            "temperature_increment_on_fallback": 0.2,
            "compression_ratio_threshold": 2.4,
            "logprob_threshold": -1,
            "no_speech_threshold": 0.6,
        }
        chunks, state = streamed(whisper, request)
        assert json.dumps(state["output"]) == json.dumps(GETTYSBURG)
        assert state == answer(whisper, request) == completed(GETTYSBURG)
        assert chunks == [GETTYSBURG]

    def test_subtitles_words_and_a_translation_keep_their_form(self, whisper: Caller) -> None:
        request = self.recording(transcription="srt", translate=True, translation="vtt", word_timestamps=True)
        assert answer(whisper, request) == completed(
            {
                **GETTYSBURG,
                "transcription": "1\n00:00:00,000 --> 00:00:02,000\nFour score\n\n"
                "2\n00:00:02,000 --> 00:00:04,000\nand seven years ago\n\n",
                "translation": "00:00:00.000 --> 00:00:02.000\nFour score\n\n"
                "00:00:02.000 --> 00:00:04.000\nand seven years ago\n\n",
                "word_timestamps": [
                    {"word": " Four score", "start": 0.0, "end": 2.0},
                    {"word": " and seven years ago", "start": 2.0, "end": 4.0},
                ],
            }
        )

    @pytest.mark.parametrize(
        ("request_", "error"),
        [  # src/rp_handler.py: a dict with one of these texts under ``error``
            ({"model": "turbo"}, "Must provide either audio or audio_base64"),
            ({"audio": "x", "audio_base64": "x"}, "Must provide either audio or audio_base64, not both"),
        ],
    )
    def test_what_the_handler_refused_is_refused_in_its_words(
        self, whisper: Caller, request_: dict[str, Any], error: str
    ) -> None:
        assert answer(whisper, request_) == failed(error)

    @pytest.mark.parametrize(
        ("request_", "error"),
        [  # src/rp_schema.py, and the SDK's rp_validator: the error is a *list*, with one of the texts in the comments
            ({"audio": 5}, "audio should be a valid string"),  # audio should be <class 'str'> type, not <class 'int'>.
            ({"audio": "x", "beam_size": "5"}, "beam_size should be a valid integer"),  # … <class 'int'> type, not …
            ({"audio": "x", "colour": 1}, "there is no field colour"),  # Unexpected input. colour is not a valid …
        ],
    )
    def test_what_the_validator_refused_is_refused_in_a_sentence(
        self, whisper: Caller, request_: dict[str, Any], error: str
    ) -> None:
        assert answer(whisper, request_) == failed(error)

    def test_what_is_raised_fails_the_job_with_its_message(self, whisper: Caller, site: str) -> None:
        """The SDK's text for it holds a traceback and the name of the host; a failed download was None, and read."""
        state = answer(whisper, self.recording(model="huge"))
        assert state["status"] == "FAILED"
        assert state["error"].startswith("Invalid model name: huge. Available models are: tiny, base, ")
        assert answer(whisper, {"audio": f"{site}/nothing"}) == failed(f"Failed to download {site}/nothing")

    def test_a_result_that_is_too_large_fails_the_job_with_a_sentence(self, serve_port: Serve) -> None:
        """The SDK sends it as it is; the platform does not take it, and the job stays in progress."""
        caller = serve_port("whisper", MAX_OUTPUT_BYTES="1500")
        long = {"audio_base64": in_base64(("so\n" * 100).encode())}
        state = answer(caller, long)
        assert state.keys() == {"status", "error"}
        assert "too many for a response of 1,500" in state["error"]
        [first, second] = items(caller.runsync([self.recording(), long]))
        assert (first, second["type"]) == (GETTYSBURG, "OutputTooLarge")

    def test_with_a_bucket_a_result_that_is_too_large_is_stored(
        self, serve_port: Serve, bucket: dict[str, str]
    ) -> None:
        caller = serve_port("whisper", MAX_OUTPUT_BYTES="1500", **bucket)
        state = answer(caller, {"audio_base64": in_base64(("so\n" * 100).encode())})
        assert state["output"].keys() == {"result_url", "bytes"}
        content = httpx2.get(state["output"]["result_url"]).content
        assert len(content) == state["output"]["bytes"]
        assert json.loads(content)["transcription"] == " ".join(["so"] * 100)

    def test_a_list_of_requests_has_an_outcome_for_each(self, whisper: Caller, site: str) -> None:
        bad: list[tuple[dict[str, Any], dict[str, Any]]] = [
            ({"audio": 5}, {"type": "InvalidItem", "message": "audio should be a valid string"}),
            ({}, {"type": "InvalidItem", "message": "Must provide either audio or audio_base64"}),
            ({"audio_base64": "YQ"}, {"type": "Error", "message": "Incorrect padding"}),  # binascii.Error
            ({"audio": site}, {"type": "DownloadFailed", "message": f"Failed to download {site}"}),
        ]
        good = self.recording()
        made = items(whisper.runsync([good, *(request for request, _ in bad), good]))
        assert made == [GETTYSBURG, *(failure for _, failure in bad), GETTYSBURG]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


PNG = b"\x89PNG\r\n\x1a\n"
DRAWN = {"images": [{"filename": "ComfyUI_00001_.png", "type": "base64", "data": in_base64(PNG + bytes(9))}]}
"""worker-comfyui, ``handler.py``: ``final_result`` in ``handler``; no ``errors`` unless there are some."""


class TestComfyUI:
    def draw(self, size: int = 9) -> dict[str, Any]:
        return {"3": node("EmptyImage", bytes=size), "9": node("SaveImage", filename_prefix="ComfyUI")}

    def test_a_workflow_is_answered_with_its_pictures(self, comfyui: Caller) -> None:
        """Fields that the original does not look at are no fault; what only is a preview is left out."""
        workflow = {**self.draw(), "10": node("PreviewImage", filename_prefix="temp")}
        request = {"workflow": workflow, "client": "mine"}
        chunks, state = streamed(comfyui, request)
        assert json.dumps(state["output"]) == json.dumps(DRAWN)
        assert state == answer(comfyui, request) == completed(DRAWN)
        assert chunks == [DRAWN]

    def test_a_request_may_be_a_text_and_bring_pictures(self, comfyui: Caller) -> None:
        workflow = {"5": node("LoadImage", image="a.png"), "9": node("SaveImage", filename_prefix="edited")}
        for image in ("cGljdHVyZQ==", "data:image/png;base64,cGljdHVyZQ=="):
            request = {"workflow": workflow, "images": [{"name": "a.png", "image": image}]}
            edited = {"filename": "edited_00001_.png", "type": "base64", "data": "cGljdHVyZQ=="}
            assert answer(comfyui, json.dumps(request)) == completed({"images": [edited]})

    def test_a_workflow_without_pictures_is_a_success(self, comfyui: Caller) -> None:
        request = {"workflow": {"10": node("PreviewImage", filename_prefix="temp")}}
        assert answer(comfyui, request) == completed({"status": "success_no_images", "images": []})

    @pytest.mark.parametrize(
        ("request_", "error"),
        [  # handler.py: ``validate_input``
            ({}, "Missing 'workflow' parameter"),
            (
                {"workflow": {}, "images": [{"name": "a.png"}]},
                "'images' must be a list of objects with 'name' and 'image' keys",
            ),
        ],
    )
    def test_what_the_handler_refused_is_refused_in_its_words(
        self, comfyui: Caller, request_: dict[str, Any], error: str
    ) -> None:
        assert answer(comfyui, request_) == failed(error)

    def test_a_workflow_that_comfyui_refuses_is_answered_as_before(self, comfyui: Caller) -> None:
        """handler.py: ``queue_workflow``."""
        request = {"workflow": {"30": node("CheckpointLoaderSimple", ckpt_name="sd.safetensors")}}
        assert answer(comfyui, request) == failed(
            "Workflow validation failed:\n"
            "• Node 30 (errors): [{'type': 'value_not_in_list', 'message': 'Value not in list', 'details': "
            "\"ckpt_name: 'sd.safetensors' not in ['flux1-dev-fp8.safetensors']\", 'extra_info': {}}]\n"
            "• Node 30 (dependent_outputs): ['9']\n"
            "• Node 30 (class_type): CheckpointLoaderSimple\n\n"
            "Available checkpoint models: flux1-dev-fp8.safetensors"
        )

    def test_the_text_of_an_error_is_cut(self, comfyui: Caller) -> None:
        """The original's is as long as its ComfyUI has models."""
        name = "sd" * 300
        request = {"workflow": {"30": node("CheckpointLoaderSimple", ckpt_name=name)}}
        state = answer(comfyui, request)
        assert state["error"].startswith("Workflow validation failed:\n• Node 30 (errors): [{'type': ")
        assert len(state["error"]) == 500

    def test_an_error_with_details_has_them_as_the_jobs_output(self, comfyui: Caller) -> None:
        """What the SDK makes of ``{"error": …, "details": […]}``."""
        node_failed = "Workflow execution error: Node Type: OutOfMemory, Node ID: 4, Message: Allocation on device"
        assert answer(comfyui, {"workflow": {"4": node("OutOfMemory")}}) == failed(
            "Job processing failed", output={"details": [node_failed]}
        )
        upload = {"workflow": self.draw(), "images": [{"name": "a.png", "image": "YQ"}]}
        assert answer(comfyui, upload) == failed(
            "Failed to upload one or more input images",
            output={"details": ["Error decoding base64 for a.png: Incorrect padding"]},
        )

    def test_a_list_of_requests_has_an_outcome_for_each(self, comfyui: Caller) -> None:
        good = {"workflow": self.draw()}
        lost = "Workflow execution error: Node Type: OutOfMemory, Node ID: 4, Message: Allocation on device"
        bad: list[tuple[Any, dict[str, Any]]] = [
            ({}, {"type": "InvalidItem", "message": "Missing 'workflow' parameter"}),
            (
                {"workflow": {"4": node("OutOfMemory")}},
                {"type": "Error", "message": "Job processing failed", "details": {"details": [lost]}},
            ),
        ]
        made = items(comfyui.runsync([good, "a fox", *(request for request, _ in bad), good]))
        assert made == [DRAWN, made[1], *(failure for _, failure in bad), DRAWN]
        assert made[1]["type"] == "InvalidItem"
        assert made[1]["message"].startswith("should be a valid dictionary")

    def test_a_comfyui_that_crashes_costs_its_item_only(self, comfyui: Caller) -> None:
        """The original answers every later job with an error, until somebody ends the worker."""
        good, bad = {"workflow": self.draw()}, {"workflow": {"1": node("Segfault")}}
        made = items(comfyui.runsync([good, bad, good]))
        assert made == [DRAWN, {"type": "ItemFailed", "message": "ComfyUI has ended"}, DRAWN]
        assert answer(comfyui, bad) == failed("ComfyUI has ended")
        assert answer(comfyui, good) == completed(DRAWN)

    def test_with_a_bucket_pictures_are_addresses(self, serve_port: Serve, bucket: dict[str, str]) -> None:
        """The SDK's own helper names the bucket by the month, and the object by the job."""
        month = datetime.now(UTC).strftime("%m-%y")
        s3(bucket).create_bucket(Bucket=month)
        caller = serve_port("comfyui", COMFYUI=COMFYUI, **bucket)
        state = caller.post("/runsync", json={"input": {"workflow": self.draw()}}).json()
        [picture] = state["output"]["images"]
        url = picture.pop("data")
        assert picture == {"filename": "ComfyUI_00001_.png", "type": "s3_url"}
        assert url.startswith(f"{bucket['BUCKET_ENDPOINT_URL']}/{month}/{state['id']}/")
        assert httpx2.get(url).content == PNG + bytes(9)

    def test_refresh_worker_ends_the_worker_after_the_job_and_is_not_in_the_answer(self, serve_port: Serve) -> None:
        """The SDK takes it out of what a handler returns."""
        caller = serve_port("comfyui", COMFYUI=COMFYUI, REFRESH_WORKER="true")
        [worker] = caller.endpoint.workers.running
        assert answer(caller, {"workflow": self.draw()}) == completed(DRAWN)
        assert worker.exited.result(20) is not None
        assert answer(caller, {"workflow": {"4": node("OutOfMemory")}})["status"] == "FAILED"

    def test_a_result_that_is_too_large_fails_the_job_with_a_sentence(self, serve_port: Serve) -> None:
        caller = serve_port("comfyui", COMFYUI=COMFYUI, MAX_OUTPUT_BYTES="1500")
        large = {"workflow": self.draw(2_000)}
        state = answer(caller, large)
        assert state.keys() == {"status", "error"}
        assert "too many for a response of 1,500" in state["error"]
        [first, second] = items(caller.runsync([{"workflow": self.draw()}, large]))
        assert (first, second["type"]) == (DRAWN, "OutputTooLarge")


MODEL = "facebook/opt-125m"


def batch(*tokens: str, total: int, read: int) -> dict[str, Any]:
    """worker-vllm v2.23.0, ``src/engine.py``: what ``_generate_vllm`` yields."""
    return {"choices": [{"tokens": [*tokens]}], "usage": {"input": read, "output": total}}


def event(word: str) -> str:
    """A server-sent event of the OpenAI API."""
    chunk = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": MODEL,
        "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}],
    }
    return f"data: {json.dumps(chunk)}\n\n"


class TestVLLM:
    def chat(self, content: str, **options: Any) -> dict[str, Any]:
        """Return what the platform makes of a call of ``/openai/v1/chat/completions``."""
        messages = [{"role": "user", "content": content}]
        return {
            "openai_route": "/v1/chat/completions",
            "openai_input": {"model": MODEL, "messages": messages, **options},
        }

    def test_a_prompt_is_answered_with_a_list_of_one(self, vllm: Caller) -> None:
        """As ``return_aggregate_stream`` gives it."""
        request = {"prompt": "a b c", "sampling_params": {"max_tokens": 2}, "use_openai_format": False}
        whole = [batch("a b", total=2, read=3)]
        chunks, state = streamed(vllm, request)
        assert json.dumps(state["output"]) == json.dumps(whole)
        assert state == answer(vllm, request) == completed(whole)
        assert chunks == whole

    def test_with_stream_there_are_more_tokens_in_each_batch(self, vllm: Caller) -> None:
        request = {"prompt": "a b c d e f", "stream": True}
        batches = [
            batch("a", total=1, read=6),
            batch(" b", " c", " d", total=4, read=6),
            batch(" e", " f", total=6, read=6),
        ]
        chunks, state = streamed(vllm, request)
        assert chunks == batches
        assert state == completed(batches)

    def test_a_caller_may_say_how_many_tokens_come_at_once(self, vllm: Caller) -> None:
        request = {"prompt": "a b c", "stream": True, "max_batch_size": 2, "min_batch_size": 2}
        assert answer(vllm, request) == completed([batch("a", " b", total=2, read=3), batch(" c", total=3, read=3)])

    def test_messages_go_through_the_chat_template(self, vllm: Caller) -> None:
        chat = [{"role": "user", "content": "hi"}]
        for request in ({"messages": chat}, {"prompt": chat}):
            assert answer(vllm, request) == completed([batch("user: hi", total=2, read=2)])

    def test_several_answers_to_one_prompt_are_several_choices(self, vllm: Caller) -> None:
        request = {"prompt": "a b", "sampling_params": {"n": 2}}
        choices = [{"tokens": ["a b"]}, {"tokens": ["a b"]}]
        assert answer(vllm, request) == completed([{"choices": choices, "usage": {"input": 2, "output": 4}}])

    @pytest.mark.parametrize(
        ("request_", "error"),
        [
            # src/handler.py: what JobInput raises, as a text
            ({"prompt": "a", "sampling_params": {"temperature": -1}}, "temperature must be non-negative, got -1."),
            # src/engine.py: an ErrorResponse under ``error``; the SDK makes a text of a Python dict
            (
                {"prompt": ""},
                "{'error': {'message': 'The decoder prompt cannot be empty', 'type': 'BadRequestError', "
                "'param': None, 'code': 400}}",
            ),
            (
                {"openai_route": "/v1/rerank", "openai_input": {}},
                "{'message': 'Invalid route', 'type': 'BadRequestError', 'param': None, 'code': 400}",
            ),
            (
                {"openai_route": "/v1/chat/completions", "openai_input": {"model": "other", "messages": []}},
                "{'message': 'The model `other` does not exist.', 'type': 'NotFoundError', "
                "'param': 'model', 'code': 404}",
            ),
        ],
    )
    def test_an_error_fails_the_job_with_the_same_text(
        self, vllm: Caller, request_: dict[str, Any], error: str
    ) -> None:
        assert answer(vllm, request_) == failed(error)

    def test_a_request_of_another_form_fails_the_job(self, vllm: Caller) -> None:
        """The original looks at no type, and has the text of whatever fails then."""
        request = {"prompt": "a", "sampling_params": "hot"}
        assert answer(vllm, request) == failed("sampling_params should be a valid dictionary")

    def test_the_openai_routes_answer_with_a_list_of_one(self, vllm: Caller) -> None:
        models = {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "vllm"}]}
        assert answer(vllm, {"openai_route": "/v1/models", "openai_input": None}) == completed([models])
        said = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": MODEL,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "hi there"},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 2, "total_tokens": 4, "completion_tokens": 2},
        }
        assert answer(vllm, self.chat("hi there")) == completed([said])

    def test_an_openai_stream_is_texts_with_events_and_the_output_is_all_of_it(self, vllm: Caller) -> None:
        """``RAW_OPENAI_OUTPUT``, which is on unless it is turned off: the platform passes the texts on as they are.

        The original's output is the list of the texts.
        """
        texts = [event("a"), event("b") + event("c") + event("d"), event("e") + "data: [DONE]\n\n"]
        chunks, state = streamed(vllm, self.chat("a b c d e", stream=True))
        assert chunks == texts
        assert state == completed("".join(texts))

    def test_an_openai_stream_may_be_a_list_of_lists(self, serve_port: Serve) -> None:
        caller = serve_port("vllm", RAW_OPENAI_OUTPUT="0")
        events = [json.loads(event(word).removeprefix("data: ")) for word in "ab"]
        chunks, state = streamed(caller, self.chat("a b", stream=True))
        assert chunks == [events[:1], events[1:]]
        assert state == completed(chunks)

    def test_a_list_of_requests_has_an_outcome_for_each(self, vllm: Caller) -> None:
        bad = {"prompt": "a", "sampling_params": {"temperature": -1}}
        made = items(vllm.runsync([{"prompt": "a"}, bad, {"sampling_params": "hot"}, {"prompt": "b"}]))
        assert made == [
            [batch("a", total=1, read=1)],
            {"type": "ValueError", "message": "temperature must be non-negative, got -1."},
            {"type": "InvalidItem", "message": "sampling_params should be a valid dictionary"},
            [batch("b", total=1, read=1)],
        ]

    def test_a_lost_gpu_costs_one_item_and_its_process(self, vllm: Caller) -> None:
        """The original ends its worker where it sees one, and every job in it."""
        made = items(vllm.runsync([{"prompt": "a"}, {"prompt": "lose the GPU"}, {"prompt": "b"}]))
        message = "CUDA error: an illegal memory access was encountered"
        assert [made[0], made[2]] == [[batch("a", total=1, read=1)], [batch("b", total=1, read=1)]]
        assert made[1] == {"type": "ItemFailed", "message": message}

    def test_a_result_that_is_too_large_fails_the_job_with_a_sentence(self, serve_port: Serve) -> None:
        caller = serve_port("vllm", MAX_OUTPUT_BYTES="1500")
        large = {"prompt": "word " * 500, "sampling_params": {"max_tokens": 500}}
        state = answer(caller, large)
        assert state.keys() == {"status", "error"}
        assert "too many for a response of 1,500" in state["error"]
        [first, second] = items(caller.runsync([{"prompt": "a"}, large]))
        assert (first, second["type"]) == ([batch("a", total=1, read=1)], "OutputTooLarge")


def test_the_shortest_port_answers_as_the_old_handler_does(serve_port: Serve, tmp_path: Path) -> None:
    shutil.copy(PORTS / "stubs" / "old_handler.py", tmp_path)
    port = serve_port("_shortest")
    with (
        LocalEndpoint([sys.executable, "old_handler.py"], cwd=tmp_path) as endpoint,
        Caller(endpoint, Path(os.devnull)) as old,
    ):
        for request in ({"text": "some words"}, {"text": ""}, {}):
            assert answer(port, request) == answer(old, request)
    made = items(port.runsync([{"text": "one"}, {}]))
    assert made == [[{"word": "one"}, {"count": 1}], {"type": "Error", "message": "There is no text"}]


def test_every_python_block_of_the_page_is_in_a_port() -> None:
    ports = [port.read_text(encoding="utf-8") for port in PORTS.glob("*.py")]
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        assert any(block in port for port in ports), block


def test_the_page_links_each_port() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for port in PORTS.glob("[!_]*.py"):
        assert f"(../library/tests/ports/{port.name})" in page


def test_every_text_of_an_error_that_the_page_quotes_is_in_a_test(request: pytest.FixtureRequest) -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    _, _, table = PAGE.read_text(encoding="utf-8").partition("## What the callers get")
    for quoted in re.findall(r"`([A-Z][^`]+ [^`]+)`", table):
        assert quoted in here, quoted
