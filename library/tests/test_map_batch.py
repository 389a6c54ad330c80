"""``map --batch`` writes every item's envelope once, and pays for none twice, wherever it is interrupted."""

import asyncio
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aggregating_worker.client import CallFailed, Client, batch, http, map_batch
from aggregating_worker.client.map import Summary, map_file
from tests.batch_api import BatchApi
from tests.calling import KEY, Answer, Request, client, command, environment, lines, serve_http
from tests.conftest import LIBRARY, Serve


@pytest.fixture
def api() -> BatchApi:
    return BatchApi()


@pytest.fixture
def address(api: BatchApi) -> Iterator[str]:
    with serve_http(api) as url:
        yield url


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def write_items(out: Path, count: int) -> Path:
    path = out.with_name("items.jsonl")
    path.write_text("".join(f"{number}\n" for number in range(count)))
    return path


def mapped(address: str, items: Path, out: Path, **options: Any) -> Summary:
    async def scenario() -> Summary:
        async with Client("local", api_key=KEY, base_url=address) as caller:
            with items.open("rb") as source:
                return await map_file(caller, source, out, job={"input": {}}, batch=True, **options)

    return asyncio.run(scenario())


def results(out: Path) -> list[Any]:
    written = lines(out.read_bytes())
    assert [envelope["index"] for envelope in written] == list(range(len(written)))
    return [envelope["result"] if envelope["success"] else None for envelope in written]


def states(api: BatchApi) -> list[str]:
    return [each.status for each in api.all()]


def test_a_list_is_one_batch_if_it_fits(api: BatchApi, address: str, out: Path) -> None:
    finished = client(address, "map", str(write_items(out, 1_000)), "--out", str(out), "--batch", "--shard", "10")
    assert finished.stdout.startswith(b"1000 items, 0 failed, 100 jobs, ")
    assert results(out) == list(range(1_000))
    [only] = api.all()
    assert len(only.requests) == 100
    assert not out.with_name("results.jsonl.journal").exists()


def test_a_list_is_as_few_batches_and_calls_as_the_limits_allow(
    api: BatchApi, address: str, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(map_batch, "MAX_REQUESTS", 50)
    monkeypatch.setattr(batch, "MAX_BODY", 100_000)
    items = write_items(out, 0)
    items.write_text("".join(f'"{number} {"x" * 3_000}"\n' for number in range(120)))
    mapped(address, items, out, shard=1)
    assert sorted(len(each.requests) for each in api.all()) == [20, 50, 50]  # made at once, in any order
    assert api.calls["POST requests"] == 2 + 2 + 1
    assert len(results(out)) == 120


def test_more_batches_than_the_endpoint_takes_at_once_wait_for_their_turn(
    api: BatchApi, address: str, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(map_batch, "MAX_REQUESTS", 2)
    mapped(address, write_items(out, 60), out, shard=2)
    assert len(api.all()) == 15
    assert results(out) == list(range(60))


Step = Callable[[Request], bool]

STEPS: dict[str, tuple[Step, bool]] = {
    "before it is created": (lambda asked: asked.path.endswith("/batch") and asked.method == "POST", False),
    "created": (lambda asked: asked.path.endswith("/batch") and asked.method == "POST", True),
    "before requests are added": (lambda asked: asked.path.endswith("/requests"), False),
    "requests added": (lambda asked: asked.path.endswith("/requests"), True),
    "before it is finalized": (lambda asked: asked.path.endswith("/finalize"), False),
    "finalized": (lambda asked: asked.path.endswith("/finalize"), True),
    "results listed": (lambda asked: "offset=" in asked.path, True),
}


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_a_step_it_goes_on_and_pays_for_nothing_twice(
    api: BatchApi, address: str, out: Path, step: str
) -> None:
    """The killed process never sees the answer to that step. If it is a batch's id, the batch stays an empty draft."""
    at, done = STEPS[step]
    running: list[subprocess.Popen[bytes]] = []

    def kill(request: Request, forward: Callable[[], Answer]) -> Answer:
        if not at(request):
            return forward()
        api.meddle = lambda _, forward: forward()
        if done:
            forward()
        running[0].kill()
        return Answer(500)

    api.meddle = kill
    arguments = ("map", str(write_items(out, 100)), "--out", str(out), "--batch", "--shard", "10")
    process = subprocess.Popen(command(*arguments), cwd=LIBRARY, env=environment(address))
    running.append(process)
    assert process.wait(30) == -signal.SIGKILL
    assert client(address, *arguments).returncode == 0
    assert results(out) == list(range(100))
    assert set(api.worked.values()) == {1}
    assert states(api).count("DRAFT") == (step == "created")


def test_killed_three_times_at_random_thirty_thousand_items_are_paid_for_once(
    api: BatchApi, address: str, out: Path
) -> None:
    api.pace = 40
    arguments = ("map", str(write_items(out, 30_000)), "--out", str(out), "--batch", "--shard", "50")
    for worked in (1, 8_000, 20_000):
        with subprocess.Popen(command(*arguments), cwd=LIBRARY, env=environment(address)) as process:
            while len(api.worked) < worked:
                assert process.poll() is None
                time.sleep(0.005)
            process.kill()
        assert not out.exists()
    assert client(address, *arguments).returncode == 0
    assert results(out) == list(range(30_000))
    assert set(api.worked.values()) == {1}


@pytest.mark.parametrize("taken", [True, False])
@pytest.mark.parametrize("path", ["/batch", "/requests", "/finalize", "/cancel", ""])
def test_an_answer_that_is_lost_costs_no_second_payment(
    api: BatchApi, address: str, out: Path, path: str, taken: bool
) -> None:
    lost: list[str] = []

    def lose(request: Request, forward: Callable[[], Answer]) -> Answer:
        asked = request.method + re.sub(r"batch_[0-9]+|[?].*", "", request.path)
        if asked.endswith(path) and asked not in lost:
            lost.append(asked)
            if taken:
                forward()
            return Answer(502)
        return forward()

    api.meddle = lose
    mapped(address, write_items(out, 100), out, shard=10)
    assert results(out) == list(range(100))
    assert set(api.worked.values()) == {1}
    assert states(api).count("DRAFT") == (taken and path in ("/batch", ""))


def test_what_failed_is_asked_for_again(api: BatchApi, address: str, out: Path) -> None:
    once = {30, 70}

    def fail_once(given: dict[str, Any]) -> Any:
        if once.intersection(given["items"]):
            once.difference_update(given["items"])
            return None
        return api.echo(given)

    api.work = fail_once
    assert mapped(address, write_items(out, 100), out, shard=10).jobs == 10 + 2 * 2
    assert results(out) == list(range(100))
    assert set(api.worked.values()) == {1}


def test_a_request_that_fails_costs_only_the_lines_to_blame(api: BatchApi, address: str, out: Path) -> None:
    bad = {3, 4, 70}
    api.work = lambda given: None if bad.intersection(given["items"]) else api.echo(given)
    summary = mapped(address, write_items(out, 100), out, shard=10)
    assert (summary.failed, summary.lines) == (3, "lines 4-5, 71")
    assert summary.failures[71] == "JobFailed: out of memory"
    assert results(out) == [None if number in bad else number for number in range(100)]
    assert len(api.all()) <= 1 + 4
    assert set(api.worked.values()) == {1}


@pytest.mark.parametrize("count", [1, 1_000])
def test_where_nothing_is_accepted_it_is_the_workers_message_and_costs_few_requests(
    api: BatchApi, address: str, out: Path, count: int
) -> None:
    api.work = lambda given: None
    with pytest.raises(CallFailed, match=r"accepted nothing of the list, not even lines? 1.* FAILED: out of memory"):
        mapped(address, write_items(out, count), out, shard=100)
    assert sum(len(each.requests) for each in api.all()) < 100
    assert not out.exists()


def test_an_interrupted_list_may_be_mended_and_reordered(api: BatchApi, address: str, out: Path) -> None:
    api.pace = 3
    arguments = ("map", str(write_items(out, 100)), "--out", str(out), "--batch", "--shard", "10")
    with subprocess.Popen(command(*arguments), cwd=LIBRARY, env=environment(address)) as process:
        while len(api.worked) < 30:
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    api.pace = 1_000
    others = [*range(99, 49, -1), 1_000, *range(49)]
    out.with_name("items.jsonl").write_text("".join(f"{number}\n" for number in others))
    assert client(address, *arguments).returncode == 0
    assert results(out) == others
    assert set(api.worked.values()) == {1}


@pytest.mark.parametrize("fate", ["cancelled", "forgotten", "standing still"])
def test_a_batch_that_comes_to_nothing_is_asked_for_again(api: BatchApi, address: str, out: Path, fate: str) -> None:
    api.pace = 4

    def strike(request: Request, forward: Callable[[], Answer]) -> Answer:
        answer = forward()
        first = api.batches.get("batch_0")
        if first is not None and first.count("COMPLETED") >= 4 and first.status == "FINALIZED":
            if fate == "cancelled":
                first.status = "CANCELLED"
            elif fate == "forgotten":
                del api.batches["batch_0"]
            else:
                api.pace = 0
        if request.path.endswith("/cancel"):
            api.pace = 1_000
        return answer

    api.meddle = strike
    mapped(address, write_items(out, 100), out, shard=10, patience=0.5)
    assert results(out) == list(range(100))
    assert len(api.worked) == 100
    if fate != "forgotten":
        assert set(api.worked.values()) == {1}


def test_results_that_do_not_fit_are_asked_for_alone(api: BatchApi, address: str, out: Path) -> None:
    def crowded(given: dict[str, Any]) -> Any:
        too_large = {"type": "OutputTooLarge", "message": ""}
        return [
            {"index": each["index"], "success": False, "failure": too_large}
            if each["result"] == 5 or (each["result"] % 10 == 7 and len(given["items"]) > 1)
            else each
            for each in api.echo(given)
        ]

    api.work = crowded
    summary = mapped(address, write_items(out, 30), out, shard=10)
    assert (summary.failed, summary.jobs) == (1, 3 + 4)
    assert results(out) == [None if number == 5 else number for number in range(30)]


def test_a_worker_that_does_not_know_first_index_is_noticed_before_anything_is_mixed_up(
    api: BatchApi, address: str, out: Path
) -> None:
    def old(given: dict[str, Any]) -> Any:
        return [{**each, "index": index} for index, each in enumerate(api.echo(given))]

    api.work = old
    with pytest.raises(CallFailed, match="not numbered from its first_index"):
        mapped(address, write_items(out, 20), out, shard=5)
    journal = lines(out.with_name("results.jsonl.journal").read_bytes())
    assert not any("success" in line for line in journal)


def test_results_too_large_for_one_answer_are_listed_in_smaller_ones(
    api: BatchApi, address: str, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_ANSWER", 3_000)
    mapped(address, write_items(out, 400), out, shard=10)
    assert results(out) == list(range(400))


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_leaves_the_batch_running_and_says_how_to_come_back(
    api: BatchApi, address: str, out: Path
) -> None:
    api.pace = 0
    arguments = ("map", str(write_items(out, 100)), "--out", str(out), "--batch", "--shard", "10")
    with subprocess.Popen(
        command(*arguments), cwd=LIBRARY, env=environment(address), stderr=subprocess.PIPE
    ) as process:
        while "FINALIZED" not in states(api):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read() if process.stderr else b""
    assert process.returncode == 130
    assert said.startswith(
        b"Interrupted. The batches keep running. Run the same command to get their results, or with --cancel to cancel"
    )
    assert states(api) == ["FINALIZED"]
    api.pace = 1_000
    assert client(address, *arguments).returncode == 0
    assert len(api.all()) == 1
    assert results(out) == list(range(100))


def test_cancel_cancels_it_and_what_is_done_is_kept(api: BatchApi, address: str, out: Path) -> None:
    api.pace = 3
    arguments = ("map", str(write_items(out, 100)), "--out", str(out), "--batch", "--shard", "10")
    with subprocess.Popen(command(*arguments), cwd=LIBRARY, env=environment(address)) as process:
        while not api.worked:
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    cancelled = client(address, *arguments, "--cancel")
    assert (cancelled.returncode, states(api)) == (0, ["CANCELLED"])
    assert cancelled.stdout.startswith(b"Batches cancelled: 1. ")
    api.pace = 1_000
    assert client(address, *arguments).returncode == 0
    assert results(out) == list(range(100))
    assert set(api.worked.values()) == {1}


def test_progress_is_in_items_and_in_requests(api: BatchApi, address: str, out: Path) -> None:
    terminal, error = os.openpty()
    with subprocess.Popen(
        command("map", str(write_items(out, 70)), "--out", str(out), "--batch", "--shard", "10"),
        cwd=LIBRARY,
        env=environment(address) | {"TERM": "xterm", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=error,
    ) as process:
        os.close(error)
        process.communicate(timeout=30)
    with os.fdopen(terminal, "rb", buffering=0) as screen:
        printed = screen.read(100_000)
    assert b"70/70" in printed
    assert b"7 of 7 requests" in printed


def test_batches_do_not_continue_a_journal_of_jobs(address: str, out: Path) -> None:
    items = write_items(out, 2)
    with serve_http(lambda _: Answer(403)) as refusing:
        assert client(refusing, "map", str(items), "--out", str(out)).returncode == 2
    with pytest.raises(CallFailed, match="was begun with another --batch"):
        mapped(address, items, out)


@pytest.mark.parametrize("body", [b"[]", b"3", b'{"id": 3}', b'{"id": "b", "status": "DRAFT", "requestTotal": "x"}'])
def test_whatever_an_endpoint_without_batches_answers_is_a_sentence(out: Path, body: bytes) -> None:
    sentence = "did not answer with a JSON object|is not a batch"
    with serve_http(lambda _: Answer(200, body)) as address, pytest.raises(CallFailed, match=sentence):
        mapped(address, write_items(out, 2), out)


def test_a_worker_in_its_production_loop_does_batches_too(serve: Serve, out: Path) -> None:
    """Through the local endpoint, whose batch workers are this project's; killed once on the way."""
    caller = serve("hostile", CHUNK_SIZE="16")
    items = write_items(out, 600)
    arguments = ["map", str(items), "--out", str(out), "--batch", "--shard", "20"]
    killed = subprocess.Popen(command(*arguments), cwd=LIBRARY, env=environment(caller.endpoint.base_url))
    while not out.with_name("results.jsonl.journal").exists():
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    finished = client(caller.endpoint.base_url, *arguments)
    assert finished.returncode == 0, finished.stderr
    assert results(out) == list(range(600))
