"""The sender insists: what it sends again, for how long and how often, what it gives up, and what it says then."""

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import ClientConnectionError
from runpod.serverless.modules import rp_http, rp_job
from yarl import URL

from aggregating_worker.delivery import sender as module
from aggregating_worker.delivery.chunk import Chunk
from aggregating_worker.delivery.post import Answer, Poster
from aggregating_worker.delivery.sender import ANSWER_WITHIN, BYTES_A_SECOND, HOPELESS_WITHIN, LARGE, Sender
from aggregating_worker.outcome.overflow import Output
from aggregating_worker.outcome.result import failure
from tests.engine import success

JOB = {"id": "a/b"}
OK = Answer(200, "")


class Platform(Poster):
    """Gives one answer after another, the last one again and again, on a clock that only sleeping moves."""

    def __init__(self, *answers: int | Answer | Exception) -> None:
        self.now = 1_000.0
        self.slept: list[float] = []
        self.bodies: list[bytes] = []
        self.asked: list[tuple[str, str, dict[str, str], float]] = []
        self.before: Callable[[], None] = lambda: None
        """Called at the beginning of each POST."""
        self._answers = list(answers)

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    async def post(
        self, server: URL, path: str, headers: Mapping[str, str], body: Sequence[bytes], seconds: float
    ) -> Answer:
        self.before()
        self.bodies.append(b"".join(body))
        self.asked.append((str(server), path, dict(headers), seconds))
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return Answer(answer, "") if isinstance(answer, int) else answer


Send = Callable[..., tuple[Sender, Platform]]


@pytest.fixture
def send(monkeypatch: pytest.MonkeyPatch) -> Send:
    """Return what has a sender do something, with the platform's answers."""
    monkeypatch.setattr(rp_http, "JOB_DONE_URL", "http://platform:1/done/pod/$ID?gpu=a", raising=False)
    monkeypatch.setattr(rp_http, "JOB_STREAM_URL", "http://platform:1/stream/pod/$ID?gpu=a", raising=False)
    monkeypatch.setattr(random, "uniform", lambda low, high: high)

    def run(do: Callable[[Sender], Any], *answers: int | Answer | Exception, **fields: Any) -> tuple[Sender, Platform]:
        platform = Platform(*answers)
        clock = SimpleNamespace(monotonic=platform.monotonic, time=time.time)
        loop = SimpleNamespace(sleep=platform.sleep, timeout=asyncio.timeout, to_thread=asyncio.to_thread)
        monkeypatch.setattr(module, "time", clock)
        monkeypatch.setattr(module, "asyncio", loop)
        fields = {"deliver_for": 10.0, "session": SimpleNamespace(headers={"Authorization": "me"}), **fields}
        sender = Sender(poster=platform, **fields)
        asyncio.run(do(sender))
        return sender, platform

    return run


def chunk(*values: Any, limit: int = 10_000_000, **output: Any) -> Chunk:
    made = Output("a/b", len(values), limit, **output)
    outcomes = [made.admit(success(index, value)) for index, value in enumerate(values)]
    return Chunk(cast(Any, outcomes), made, listed=True)


def final(*chunks: Chunk, **rest: Any) -> Callable[[Sender], Any]:
    result = {"output": list(chunks), **rest}
    return lambda sender: sender.send_result(sender.session, result, JOB, is_stream=True)


def streamed(*values: Any) -> Callable[[Sender], Any]:
    return lambda sender: sender.send_chunk(sender.session, {"output": chunk(*values)}, JOB)


def outputs(bodies: Iterable[bytes]) -> list[Any]:
    return [json.loads(body)["output"] for body in bodies]


def test_a_body_goes_where_the_sdk_would_send_it(send: Send) -> None:
    sender, platform = send(final(chunk(1), stopPod=False), 200)
    [(server, path, headers, seconds)] = platform.asked
    assert (server, path) == ("http://platform:1", "/done/pod/a/b?gpu=a&isStream=true")
    assert headers == {
        "Authorization": "me",
        "charset": "utf-8",
        "Content-Type": "application/x-www-form-urlencoded",
        "X-Request-ID": "a/b",
    }
    assert seconds == ANSWER_WITHIN
    assert json.loads(platform.bodies[0]) == {
        "output": [[{"index": 0, "success": True, "result": 1}]],
        "stopPod": False,
    }
    assert (sender.taken, sender.lost) == (1, False)
    _, platform = send(streamed(1), 200)
    assert platform.asked[0][1] == "/stream/pod/a/b?gpu=a&isStream=false"
    _, platform = send(
        lambda sender: sender.send_result(sender.session, {"error": "x"}, {"id": "ä b"}, is_stream=False), 200
    )
    assert platform.asked[0][1] == "/done/pod/%C3%A4%20b?gpu=a&isStream=false"
    assert json.loads(platform.bodies[0]) == {"error": "x"}


def test_a_chunk_that_is_no_list_is_its_envelope(send: Send) -> None:
    made = chunk(1, 2)
    one, other = (Chunk([outcome], made.output, listed=False) for outcome in made.outcomes)
    _, platform = send(final(one, other), 200)
    assert outputs(platform.bodies) == [[outcome.body for outcome in made.outcomes]]


def test_the_wait_for_an_answer_grows_with_the_body(send: Send) -> None:
    _, platform = send(final(chunk("x" * 5 * BYTES_A_SECOND)), 200)
    assert platform.asked[0][3] == ANSWER_WITHIN + 5


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_the_platform_does_not_take_now_is_sent_again_less_and_less_often(
    send: Send, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    sender, platform = send(final(chunk(1)), *[status] * 7, 200, deliver_for=60.0)
    assert (len(platform.bodies), len({*platform.bodies})) == (8, 1)
    assert platform.slept == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0])
    assert not sender.lost
    out = capsys.readouterr().out
    assert out.count("are sent again") == 1
    assert (
        f"| a/b | {len(platform.bodies[0])} bytes are sent again for up to 60 s: the platform answered {status}." in out
    )


@pytest.mark.parametrize("error", [ConnectionResetError("x"), TimeoutError(), ClientConnectionError()])
def test_so_is_what_could_not_be_sent(send: Send, error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    sender, platform = send(final(chunk(1)), error, 200)
    assert (sender.taken, len(platform.bodies)) == (1, 2)
    assert platform.slept == pytest.approx([0.1])
    assert f"the platform could not be reached ({type(error).__name__})." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "waits"), [("3", 3.0), ("0", 0.1), ("nothing", 0.1), ("nan, x", 0.1), ("1e9", 10.0), ("", 0.1)]
)
def test_it_waits_as_long_as_the_platform_asks_but_not_longer_than_deliver_for(
    send: Send, asked: str, waits: float
) -> None:
    _, platform = send(final(chunk(1)), Answer(503, asked), 200)
    assert platform.slept == pytest.approx([waits])


def test_the_platform_may_ask_by_a_date(send: Send) -> None:
    _, platform = send(final(chunk(1)), Answer(429, formatdate(time.time() + 5, usegmt=True)), 200)
    assert 3 < platform.slept[0] <= 5


def test_after_deliver_for_a_job_is_given_up(send: Send, capsys: pytest.CaptureFixture[str]) -> None:
    sender, platform = send(final(chunk(1)), 503)
    assert sender.lost
    assert sum(platform.slept) == pytest.approx(10)
    assert f"| a/b | {len(platform.bodies[0])} bytes are given up after DELIVER_FOR: the platform answered 503." in (
        capsys.readouterr().out
    )


def test_no_time_passes_while_the_worker_is_frozen(send: Send) -> None:
    async def do(sender: Sender) -> None:
        platform = cast(Platform, sender.poster)

        def freeze() -> None:
            platform.now += 1_000.0 * (len(platform.bodies) == 1)  # in the second attempt

        platform.before = freeze
        await sender.send_result(sender.session, {"output": [chunk(1)]}, JOB, is_stream=True)

    _, platform = send(do, 503, deliver_for=60.0)
    assert sum(platform.slept) == pytest.approx(60 - 3 * ANSWER_WITHIN)


def test_a_chunk_after_those_that_were_given_up_has_one_short_attempt_until_one_is_taken(send: Send) -> None:
    made = chunk(1)

    async def do(sender: Sender) -> None:
        platform = cast(Platform, sender.poster)
        for seconds in (0, 20, 0, 0):
            platform.now += seconds
            await sender.send_chunk(sender.session, {"output": made}, JOB)
            since.append(made.output.failing_since)

    since: list[float | None] = []
    sender, platform = send(do, *[503] * 6, 200, deliver_for=1.0)
    assert [seconds for *_, seconds in platform.asked] == [*[ANSWER_WITHIN] * 5, HOPELESS_WITHIN, HOPELESS_WITHIN, 15]
    assert since == [1_000.0, 1_000.0, None, None]
    assert (sender.taken, sender.lost) == (2, False)


@pytest.mark.parametrize("after", [404, 200])
def test_a_job_that_is_unknown_twice_is_forgotten(send: Send, after: int, capsys: pytest.CaptureFixture[str]) -> None:
    forgotten: list[str] = []
    sender, platform = send(final(chunk(1)), 404, after, on_forgotten=forgotten.append)
    assert forgotten == ["a/b"] * (after == 404)
    assert len(platform.bodies) == 2
    assert platform.slept[0] == 1.0
    assert not sender.lost
    send(final(chunk(1)), 404)
    assert "| a/b | The platform answers 404 for this job" in capsys.readouterr().out


@pytest.mark.parametrize("status", [400, 401, 403, 405, 422])
def test_what_is_refused_for_good_is_followed_by_a_sentence(
    send: Send, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    refused: list[str] = []
    sender, platform = send(final(chunk(1), stopPod=True), status, 200, on_refusal=refused.append)
    result, sentence = platform.bodies
    why = f"The platform does not take the job's result of {len(result)} bytes: it answered {status}."
    assert json.loads(sentence) == {"stopPod": True, "error": why}
    assert (sender.lost, refused) == (False, [])
    assert (
        f"| a/b | {len(result)} bytes are refused for good: the platform answered {status}." in capsys.readouterr().out
    )


def test_a_platform_that_takes_neither_ends_the_worker(send: Send) -> None:
    refused: list[str] = []
    sender, platform = send(final(chunk(1)), 403, on_refusal=refused.append)
    assert (sender.lost, len(platform.bodies)) == (True, 2)
    assert refused == ["the platform takes neither the result of a job nor its failure"]


def test_but_not_if_it_has_taken_another_body_meanwhile(send: Send) -> None:
    refused: list[str] = []

    async def do(sender: Sender) -> None:
        platform = cast(Platform, sender.poster)

        def take_another() -> None:
            sender.taken += len(platform.bodies) == 1

        platform.before = take_another
        await sender.send_result(sender.session, {"output": [chunk(1)]}, JOB, is_stream=True)

    sender, _ = send(do, 403, on_refusal=refused.append)
    assert (sender.lost, refused) == (True, [])


def test_a_sentence_that_nobody_takes_is_given_up(send: Send) -> None:
    refused: list[str] = []
    sender, _ = send(final(chunk(1)), 403, 503, on_refusal=refused.append)
    assert (sender.lost, refused) == (True, [])


@pytest.mark.parametrize(("status", "size"), [(413, 10), (400, LARGE)])
def test_a_final_body_that_is_too_large_is_sent_again_with_less_in_it(
    send: Send, status: int, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    sender, platform = send(final(chunk("x" * 2_000 + "y" * size), chunk("z")), status, 200)
    first, second = (json.loads(body)["output"] for body in (platform.bodies[0], platform.bodies[-1]))
    assert [len(each) for each in second] == [1, 1]
    assert second[0][0]["failure"]["type"] == "OutputTooLarge"
    assert second[1] == first[1]
    assert (sender.lost, sender.taken) == (False, 1)
    out = capsys.readouterr().out
    assert (
        f"| a/b | A final body of {len(platform.bodies[0])} bytes is too large for the platform: trying a smaller"
        in out
    )


def test_one_that_cannot_be_made_smaller_is_followed_by_a_sentence(send: Send) -> None:
    for chunks in ([], [chunk(1)]):
        _, platform = send(final(*chunks), 413, 200)
        assert json.loads(platform.bodies[1])["error"].endswith(": it is too large, and cannot be made smaller.")


def test_a_chunk_that_is_too_large_is_sent_in_halves(send: Send, capsys: pytest.CaptureFixture[str]) -> None:
    _, platform = send(streamed(*range(5)), 413, 200, 413, 200, 413)
    assert [[each["index"] for each in body] for body in outputs(platform.bodies)] == [
        [0, 1, 2, 3, 4],
        [0, 1],
        [2, 3, 4],
        [2],
        [3, 4],
        [3],
        [4],
    ]
    assert platform.asked[-1][1] == "/stream/pod/a/b?gpu=a&isStream=false"
    assert (
        f"| a/b | A chunk of {len(platform.bodies[-1])} bytes is too large for the stream; its result is in the"
        in capsys.readouterr().out
    )


def test_a_chunk_that_is_refused_costs_the_job_nothing(send: Send) -> None:
    made = chunk(1)
    sender, platform = send(lambda sender: sender.send_chunk(sender.session, {"output": made}, JOB), 403)
    assert (len(platform.bodies), sender.lost, made.output.failing_since) == (1, False, None)


@pytest.mark.parametrize("in_parts", [False, True])
def test_a_caller_without_envelopes_has_the_result_on_the_stream_unless_in_parts_and_no_failure(
    send: Send, in_parts: bool
) -> None:
    made = Output("a/b", 1, 10_000, bare=True)
    made.in_parts = in_parts

    async def do(sender: Sender) -> None:
        for outcome in (success(0, "x"), failure(0, "E", "no")):
            await sender.send_chunk(sender.session, {"output": Chunk([outcome], made, listed=False)}, JOB)

    _, platform = send(do, 200)
    assert outputs(platform.bodies) == ([] if in_parts else ["x"])


def test_a_job_whose_item_asks_for_a_new_worker_says_so(send: Send) -> None:
    made, other = chunk(1), Output("a/b", 2, 10_000)
    other.refresh_worker = True
    _, platform = send(final(made, Chunk([success(0, 1)], other, listed=True)), 200)
    assert json.loads(platform.bodies[0])["stopPod"] is True


@pytest.mark.parametrize("bare", [False, True])
def test_parts_go_together_or_for_callers_without_envelopes_one_by_one(send: Send, bare: bool) -> None:
    made = Output("a/b", 1, 10_000, bare=bare)
    _, platform = send(lambda sender: sender.send_parts(made, "a/b", 3, [b'"x"', b"2"]), 200)
    assert outputs(platform.bodies) == (["x", 2] if bare else [{"index": 3, "parts": ["x", 2]}])
    assert made.in_parts
    assert platform.asked[0][1] == "/stream/pod/a/b?gpu=a&isStream=false"


def test_parts_that_are_too_large_are_in_the_result_only(send: Send, capsys: pytest.CaptureFixture[str]) -> None:
    made = Output("a/b", 1, 10_000, bare=True)
    _, platform = send(lambda sender: sender.send_parts(made, "a/b", 0, [b"1", b"2"]), 413, 200)
    assert outputs(platform.bodies) == [1, 2]
    assert (
        "| a/b | 13 bytes of parts are too large for the stream; the item's result has them." in capsys.readouterr().out
    )


@pytest.mark.parametrize("status", [300, 307, 399])
@pytest.mark.parametrize(("method", "taken"), [("POST", True), ("GET", False)])
def test_a_redirection_is_followed_and_counts_if_its_target_took_a_post(
    send: Send, method: str, taken: bool, status: int
) -> None:
    followed: list[Any] = []

    @asynccontextmanager
    async def post(url: URL, **given: Any) -> Any:
        followed.append((str(url), given["data"], given["headers"]["Authorization"]))
        yield SimpleNamespace(method=method, status=200, headers={})

    session = SimpleNamespace(headers={"Authorization": "me"}, post=post)
    sender, platform = send(final(chunk(1)), status, deliver_for=1.0, session=session)
    assert followed[0] == ("http://platform:1/done/pod/a/b?gpu=a&isStream=true", platform.bodies[0], "me")
    assert (sender.lost, sender.taken) == (not taken, int(taken))


@pytest.mark.parametrize(
    ("answer", "taken"), [(200, True), (299, True), (300, False), (503, False), (OSError(), False)]
)
def test_progress_is_sent_once(send: Send, answer: int | Exception, taken: bool) -> None:
    told: list[bool] = []

    async def do(sender: Sender) -> None:
        told.append(await sender.send_progress("a/b", b"[1]"))

    _, platform = send(do, answer)
    assert told == [taken]
    assert [json.loads(body) for body in platform.bodies] == [{"status": "IN_PROGRESS", "output": {"progress": [1]}}]
    assert platform.asked[0][1] == "/done/pod/a/b?gpu=a&isStream=false"
    assert platform.asked[0][3] == 5.0


def test_it_takes_the_place_of_the_sdks_sender_if_that_is_called_as_it_is_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in module.SEAMS:
        monkeypatch.setattr(rp_job, name, None)
    for name in module.ROUTES:
        monkeypatch.setattr(rp_http, name, "", raising=False)
    sender = Sender(deliver_for=1.0)
    assert sender.install()
    assert (rp_job.stream_result, rp_job.send_result) == (sender.send_chunk, sender.send_result)
    monkeypatch.setattr(module, "SEAMS", ("stream_result", "one", "two"))
    monkeypatch.delattr(rp_http, "JOB_DONE_URL")
    assert not sender.install()
    assert "it has no one, two, JOB_DONE_URL any more." in capsys.readouterr().out
