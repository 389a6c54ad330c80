"""``map`` writes every item's envelope once and in order, whatever happens to it, the endpoint and the way between."""

import asyncio
import errno
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregating_worker.client import CallFailed, Client
from aggregating_worker.client.http import JobUnknown
from aggregating_worker.client.items import Items
from aggregating_worker.client.job import Job
from aggregating_worker.client.journal import BegunOtherwise, Journal
from aggregating_worker.client.map import Summary, map_file
from aggregating_worker.client.shards import MAX_BODY, Frame, cut
from aggregating_worker.testing.caller import RUNNING
from tests.calling import KEY, Answer, Request, client, command, environment, proxy
from tests.conftest import LIBRARY, Caller, Serve

Forward = Callable[[], Answer]
Meddle = Callable[[Request, Forward], Answer]


@pytest.fixture(scope="module")
def echo(serve: Serve) -> Caller:
    return serve("hostile", CHUNK_SIZE="8")


@pytest.fixture(scope="module")
def picky(serve: Serve) -> Caller:
    return serve("picky", CHUNK_SIZE="256", LOOKAHEAD="256")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def write_items(folder: Path, items: list[Any]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "items.jsonl"
    path.write_text("".join(f"{json.dumps(item)}\n" for item in items), encoding="utf-8")
    return path


def mapped(base_url: str, items: Path, out: Path, **options: Any) -> Summary:
    async def scenario() -> Summary:
        async with Client("local", api_key=KEY, base_url=base_url) as caller:
            with items.open("rb") as source:
                return await map_file(caller, source, out, **{"job": {"input": {}}, **options})

    return asyncio.run(scenario())


def mapped_until_known(base_url: str, items: Path, out: Path, **options: Any) -> Summary:
    """As somebody does who has the lines sent again of which it is not known whether they are in a job."""
    while True:
        try:
            return mapped(base_url, items, out, again=True, **options)
        except CallFailed as error:
            assert "--again sends them" in str(error)


def read(out: Path) -> list[Any]:
    return [json.loads(line) for line in out.read_bytes().splitlines()]


def envelopes_of(items: list[Any]) -> list[Any]:
    return [{"index": index, "success": True, "result": item} for index, item in enumerate(items)]


def test_a_list_is_spread_over_all_workers(serve: Serve, out: Path) -> None:
    caller = serve("hostile", workers=4, ITEM_CONCURRENCY="1")
    pipes = [out.with_name(f"pipe-{number}") for number in range(4)]
    for pipe in pipes:
        os.mkfifo(pipe)
    items = write_items(out.parent, [{"read": str(pipe)} for pipe in pipes])
    with ThreadPoolExecutor() as pool:
        summary = pool.submit(mapped, caller.endpoint.base_url, items, out, shard=1, in_flight=4)
        while caller.get("/health").json()["jobs"]["inProgress"] < 4:
            assert not summary.done()
        for pipe in pipes:
            pipe.write_text(pipe.name)
        assert summary.result().jobs == 4
    assert read(out) == envelopes_of([pipe.name for pipe in pipes])
    assert {job.worker for job in caller.endpoint.queue.jobs.values()} == {f"worker-{n}" for n in range(1, 5)}


def now_and_then(dice: random.Random) -> Meddle:
    """A gateway's page in place of the answer, before the endpoint has heard of the call or after."""

    def meddle(request: Request, forward: Forward) -> Answer:
        luck = dice.random()
        if luck < 0.06:
            return Answer(500, b"<html>")
        answer = forward()
        return answer if luck < 0.94 else Answer(502, b"<html>")

    return meddle


def cutting(dice: random.Random) -> Meddle:
    """A connection that breaks within the answer."""

    def meddle(request: Request, forward: Forward) -> Answer:
        answer = forward()
        answer.sent = dice.randrange(len(answer.body)) if dice.random() < 0.12 else None
        return answer

    return meddle


def storming(dice: random.Random) -> Meddle:
    """At first nothing but refusals, more of them than there are jobs in flight."""
    storm = iter(range(9))

    def meddle(request: Request, forward: Forward) -> Answer:
        refused = next(storm, None) is not None
        return Answer(429, b'{"error": "slow down"}', {"Retry-After": "1"}) if refused else forward()

    return meddle


def forgetful(dice: random.Random) -> Meddle:
    """An endpoint that loses two of its jobs, one of them after it may have streamed something."""
    asked = Counter[str]()

    def meddle(request: Request, forward: Forward) -> Answer:
        if "/stream/" not in request.path:
            return forward()
        asked[request.path] += 1
        job = list(asked).index(request.path)
        return Answer(404, b"{}") if job == 1 or (job == 4 and asked[request.path] > 1) else forward()

    return meddle


@pytest.mark.parametrize("fault", [now_and_then, cutting, storming, forgetful])
def test_the_way_to_the_endpoint_does_not_change_the_result(
    echo: Caller, out: Path, fault: Callable[[random.Random], Meddle]
) -> None:
    items = [f"item {number}" for number in range(200)]
    with proxy(echo.endpoint.base_url, fault(random.Random(7))) as base_url:
        summary = mapped_until_known(base_url, write_items(out.parent, items), out, shard=20)
    assert (summary.items, summary.failed) == (200, 0)
    assert read(out) == envelopes_of(items)


def test_killed_three_times_at_random_it_has_each_item_once_and_in_order(echo: Caller, out: Path) -> None:
    trace = out.with_name("trace")
    items = write_items(out.parent, [{"log": str(trace), "item": number} for number in range(3_000)])
    arguments = ("map", str(items), "--out", str(out), "--shard", "50", "--in-flight", "8")
    journal = out.with_name("results.jsonl.journal")
    for lines in sorted(random.choices(range(2_000), k=3)):
        with subprocess.Popen(
            command(*arguments), cwd=LIBRARY, env=environment(echo.endpoint.base_url), stdout=subprocess.PIPE
        ) as process:
            while not journal.exists() or journal.read_bytes().count(b"\n") < lines:
                assert process.poll() is None
                time.sleep(0.005)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        assert not out.exists()
    finished = client(echo.endpoint.base_url, *arguments)
    assert finished.returncode == 0
    assert finished.stdout.startswith(b"3000 items, 0 failed, ")
    assert read(out) == envelopes_of(list(range(3_000)))
    calls = Counter(trace.read_text().split())
    assert len(calls) == 3_000
    assert calls.total() <= 3_000 + 3 * 8 * 50
    assert not journal.exists()


def test_a_worker_killed_in_a_shard_costs_nothing(serve: Serve, out: Path, fifo: Path) -> None:
    caller = serve("hostile", workers=2)
    items = [*range(30), {"read": str(fifo)}, *range(30)]
    with ThreadPoolExecutor(1) as pool:
        mapping = pool.submit(
            mapped, caller.endpoint.base_url, write_items(out.parent, items), out, shard=20, in_flight=3
        )
        held = os.open(fifo, os.O_WRONLY)  # once a worker reads
        for worker in list(caller.endpoint.workers.running):
            os.kill(worker.process.pid, signal.SIGKILL)
            worker.exited.result(10)
        os.close(held)
        fifo.write_text("again")
        summary = mapping.result(30)
    assert (summary.items, summary.failed, summary.jobs) == (61, 0, 4)
    assert read(out) == envelopes_of([*range(30), "again", *range(30)])


def test_results_that_do_not_fit_into_a_response_are_asked_for_in_smaller_shards(serve: Serve, out: Path) -> None:
    caller = serve("hostile", MAX_OUTPUT_BYTES="20000")
    items = write_items(out.parent, [{"bytes": 3_000}] * 30 + [{"bytes": 30_000}] + [{"bytes": 3_000}] * 30)
    summary = mapped(caller.endpoint.base_url, items, out, shard=20)
    assert (summary.items, summary.failed) == (61, 1)
    results = read(out)
    assert [envelope["index"] for envelope in results] == list(range(61))
    assert results[30]["failure"]["type"] == "OutputTooLarge"
    assert all(envelope["result"] == "x" * 3_000 for envelope in results if envelope["index"] != 30)


def test_items_that_are_too_large_by_themselves_cost_a_job_each(serve: Serve, out: Path) -> None:
    caller = serve("hostile", JOB_CONCURRENCY="16", MAX_OUTPUT_BYTES="20000")
    large = {*range(0, 400, 50), 399, 398}
    items = write_items(out.parent, [{"bytes": 30_000} if index in large else index for index in range(400)])
    summary = mapped(caller.endpoint.base_url, items, out, shard=20)
    assert (summary.items, summary.failed) == (400, 10)
    assert summary.jobs <= 20 + 10
    assert {envelope["index"] for envelope in read(out) if not envelope["success"]} == large


def test_a_result_that_cannot_be_fetched_is_asked_for_three_times(echo: Caller, out: Path) -> None:
    """The local endpoint's worker has no bucket here: the proxy says that it has, and that it is empty."""
    submitted = []

    def meddle(request: Request, forward: Forward) -> Answer:
        if request.path == "/empty":
            return Answer(403)
        submitted.append(request.path.endswith("/run"))
        answer = forward()
        answer.body = answer.body.replace(b'"result": "away"', b'"result_url":"%s/empty"' % address.encode())
        return answer

    with proxy(echo.endpoint.base_url, meddle) as base_url:
        address = base_url.removesuffix("/v2")
        summary = mapped(base_url, write_items(out.parent, ["here", "away"]), out)
    assert (summary.items, summary.failed) == (2, 1)
    assert [envelope["success"] for envelope in read(out)] == [True, False]
    assert read(out)[1]["failure"]["type"] == "ResultUnavailable"
    assert sum(submitted) == summary.jobs == 4  # the first one brought the other item's


def test_options_that_refuse_every_job_are_the_platforms_message_and_the_status_2(echo: Caller, out: Path) -> None:
    job = out.with_name("job.json")
    job.write_text('{"input": {"option": "none", "items": ["not these"]}}')
    before = len(echo.endpoint.queue.jobs)
    finished = client(echo.endpoint.base_url, "map", "-", "--out", str(out), "--job", str(job), given=b"1\n2\n")
    assert (finished.returncode, finished.stdout) == (2, b"")
    assert b"has accepted nothing of the list, not even lines 1-2, each in a job of its own." in finished.stderr
    assert b" FAILED: The job's input cannot be used: option should be a valid integer" in finished.stderr
    assert b"once the cause is fixed, run the same command to continue." in finished.stderr
    assert len(echo.endpoint.queue.jobs) - before == 3
    assert not out.exists()


def test_after_a_refusal_it_goes_on_where_it_was(echo: Caller, out: Path) -> None:
    calls = Counter[str]()

    def closing(request: Request, forward: Forward) -> Answer:
        calls["all"] += 1
        return forward() if calls["all"] < 30 else Answer(403, b'{"error": "no credit"}')

    trace = out.with_name("trace")
    items = write_items(out.parent, [{"log": str(trace), "item": number} for number in range(400)])
    with proxy(echo.endpoint.base_url, closing) as base_url, pytest.raises(CallFailed, match="answered 403: no credit"):
        mapped(base_url, items, out, shard=20, in_flight=2)
    done = [line["index"] for line in read(out.with_name("results.jsonl.journal")) if "success" in line]
    assert 0 < len(done) < 400
    mapped(echo.endpoint.base_url, items, out, shard=20)
    assert read(out) == envelopes_of(list(range(400)))
    calls = Counter(trace.read_text().split())
    assert {calls[str(index)] for index in done} == {1}


def test_a_line_that_is_mended_is_the_only_one_that_is_asked_for(picky: Caller, out: Path) -> None:
    trace = out.with_name("trace")
    lines: list[Any] = [{"log": str(trace), "item": number} for number in range(300)]
    lines[123] = {"invalid": "not this"}
    items = write_items(out.parent, lines)
    arguments = ("map", str(items), "--out", str(out), "--items-field", "prompts")
    for _ in range(2):
        finished = client(picky.endpoint.base_url, *arguments)
        assert finished.returncode == 1
        assert finished.stderr.startswith(b"Line 124: InvalidItem: not this.\nFailed: line 124. Mend ")
        rows = read(out)
        assert [row["index"] for row in rows if not row["success"]] == [123]
        assert len(rows) == 300
        assert out.with_name("results.jsonl.journal").exists()
    assert finished.stdout.startswith(b"300 items, 1 failed, 0 jobs, ")
    lines[123] = {"log": str(trace), "item": 123}
    write_items(out.parent, lines)
    finished = client(picky.endpoint.base_url, *arguments)
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert finished.stdout.startswith(b"300 items, 0 failed, 1 job, ")
    assert read(out) == envelopes_of(list(range(300)))
    assert sorted(map(int, trace.read_text().split())) == list(range(300))
    assert not out.with_name("results.jsonl.journal").exists()


def test_a_list_that_is_reordered_and_longer_asks_for_what_is_new(echo: Caller, out: Path) -> None:
    mapped(echo.endpoint.base_url, write_items(out.parent, ["a", "b", "b", "c"]), out, keep_journal=True)
    others = ["b", "c", "d", "b", "a", "b"]
    trace = mapped(echo.endpoint.base_url, write_items(out.parent, others), out, shard=1)
    assert (trace.items, trace.jobs) == (6, 2)
    assert read(out) == envelopes_of(others)


def test_with_files_which_are_named_by_place_what_has_moved_is_asked_for_again(echo: Caller, out: Path) -> None:
    files = out.with_name("files")
    items = write_items(out.parent, [0, "binary"])
    mapped(echo.endpoint.base_url, items, out, files=files, keep_journal=True)
    summary = mapped(echo.endpoint.base_url, write_items(out.parent, [0, 1, "binary"]), out, files=files, shard=1)
    assert (summary.items, summary.jobs) == (3, 2)
    assert Path(read(out)[2]["result"]["path"]).name == "2-0.bin"


def test_a_shard_that_is_refused_costs_only_the_lines_to_blame(picky: Caller, out: Path) -> None:
    bad = {0, 1, 37, 199}
    lines = [{"dislike": f"not {number}"} if number in bad else number for number in range(200)]
    summary = mapped(picky.endpoint.base_url, write_items(out.parent, lines), out, field="prompts", in_flight=1)
    assert (summary.items, summary.failed, summary.lines) == (200, 4, "lines 1-2, 38, 200")
    assert summary.jobs < 1 + 4 * 2 * 8
    for number, row in enumerate(read(out)):
        if number in bad:
            message = f"The job's input cannot be used: not {number}"
            assert row == {"index": number, "success": False, "failure": {"type": "JobFailed", "message": message}}
        else:
            assert row == {"index": number, "success": True, "result": number}


def test_a_long_list_of_which_nothing_is_accepted_costs_a_few_jobs(picky: Caller, out: Path) -> None:
    items = write_items(out.parent, list(range(5_000)))
    with pytest.raises(
        CallFailed, match=r"nothing of the list, not even lines 1-10, each .* FAILED: .*option"
    ) as raised:
        mapped(picky.endpoint.base_url, items, out, field="prompts", job={"input": {"option": ""}}, in_flight=1)
    assert len(read(out.with_name("results.jsonl.journal"))) < 40
    assert "run the same command" in raised.value.__notes__[0]


class Losing(Client):
    """Loses the answers to its first submits."""

    lose = 2

    async def submit(self, job: Job | bytes) -> str:
        job_id = await super().submit(job)
        if self.lose:
            self.lose -= 1
            raise JobUnknown("The answer got lost.")
        return job_id


def test_lines_of_a_job_that_may_be_queued_are_sent_again_only_if_told_to(
    echo: Caller, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = out.with_name("trace")
    items = write_items(out.parent, [{"log": str(trace), "item": number} for number in range(100)])
    unknown = r"has 2 jobs with lines 1-20: the answers got lost, .* --again sends them\."
    before = len(echo.endpoint.queue.jobs)
    with monkeypatch.context() as patch:
        patch.setattr(f"{__name__}.Client", Losing)
        with pytest.raises(CallFailed, match=unknown):
            mapped(echo.endpoint.base_url, items, out, shard=10, in_flight=1)
    for _ in range(2):
        with pytest.raises(CallFailed, match=unknown):
            mapped(echo.endpoint.base_url, items, out, shard=10)
    assert len(echo.endpoint.queue.jobs) - before == 10
    assert not out.exists()
    assert mapped(echo.endpoint.base_url, items, out, shard=10, again=True).jobs == 2
    assert read(out) == envelopes_of(list(range(100)))


def test_a_gateway_that_loses_every_answer_does_not_make_the_whole_list_unknown(
    echo: Caller, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.Client", Losing)
    monkeypatch.setattr(Losing, "lose", 1_000)
    items = write_items(out.parent, list(range(100)))
    with pytest.raises(CallFailed, match=r"has 3 jobs with lines 1-3: "):
        mapped(echo.endpoint.base_url, items, out, shard=1, in_flight=1)


def test_again_asks_for_lines_that_failed_and_were_not_mended(picky: Caller, out: Path) -> None:
    items = write_items(out.parent, ["good", {"fail": "busy"}])
    for again, jobs in ((False, 1), (False, 0), (True, 1), (False, 0)):
        summary = mapped(picky.endpoint.base_url, items, out, field="prompts", again=again)
        assert (summary.failed, summary.jobs, summary.failures) == (1, jobs, {2: "ValueError: busy"})


BAD: list[Callable[[int], bytes]] = [
    lambda n: b"{ %d" % n,
    lambda n: b"%d %d" % (n, n),
    lambda n: b"[%d, NaN]" % n,
    lambda n: b'"%d \xff"' % n,
    lambda n: b"[" * (100_000 + n),
    lambda n: b"%de999" % n,
    lambda n: b'"%d%s"' % (n, b"x" * 10_000_000),
    lambda n: json.dumps({"fail": n}).encode(),
    lambda n: json.dumps({"invalid": n}).encode(),
    lambda n: json.dumps({"dislike": n}).encode(),
]


def test_thirty_thousand_lines_of_which_thirty_are_bad_killed_mended_and_appended_between(
    picky: Caller, out: Path
) -> None:
    """Whatever had a result is never computed again."""
    dice = random.Random(21)
    trace, items = out.with_name("trace"), out.with_name("items.jsonl")
    journal = out.with_name("results.jsonl.journal")

    def good(number: int) -> bytes:
        return json.dumps({"log": str(trace), "item": number}).encode()

    lines = [good(number) for number in range(29_000)]
    bad = dice.sample(range(29_000), 40)
    for place, number in enumerate(bad):
        lines[number] = BAD[place % 10](number)
    arguments = ("map", str(items), "--out", str(out), "--items-field", "prompts", "--shard", "1000")
    at_kills: list[tuple[set[int], Counter[str]]] = []
    for entries in (dice.randrange(8_000), dice.randrange(8_000, 16_000), dice.randrange(16_000, 26_000)):
        items.write_bytes(b"\n".join(lines) + b"\n")
        with subprocess.Popen(command(*arguments), cwd=LIBRARY, env=environment(picky.endpoint.base_url)) as process:
            while not journal.exists() or journal.read_bytes().count(b"\n") < entries:
                assert process.poll() is None
                time.sleep(0.05)
            process.kill()
        kept = [json.loads(line) for line in journal.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        known = {line["job"] for line in kept if "job" in line}
        for job in picky.get("/requests").json()["requests"]:
            if job["id"] not in known and job["status"] in RUNNING:  # killed between a submit and its line
                picky.post(f"/cancel/{job['id']}")
        done = {line["result"] for line in kept if line.get("success")}
        at_kills.append((done, Counter(trace.read_text().split())))
        for number in [bad.pop() for _ in range(3)]:
            lines[number] = good(number)
        lines += [good(len(lines) + more) for more in range(300)]
    lines += [b"", *(good(number) for number in range(len(lines), 30_000))]
    bad, mended = bad[:30], bad[30:]
    for number in mended:
        lines[number] = good(number)
    items.write_bytes(b"\n".join(lines) + b"\n")
    finished = client(picky.endpoint.base_url, *arguments)
    assert finished.returncode == 1
    assert finished.stdout.startswith(b"30000 items, 30 failed, ")
    said = finished.stderr.decode().splitlines()
    numbers = [*map(str, sorted(number + 1 for number in bad))]
    assert [line.split(": ")[0] for line in said] == [*(f"Line {number}" for number in numbers[:10]), "Failed"]
    assert said[-1].startswith(f"Failed: lines {', '.join(numbers)}. Mend ")
    for index, row in enumerate(read(out)):
        assert row["index"] == index
        assert row["success"] == (index not in bad)
        assert row["success"] is False or row["result"] == index
    assert index == 29_999
    computed = Counter(trace.read_text().split())
    for done, then in at_kills:
        assert {number for number in done if computed[str(number)] != then[str(number)]} == set()


def test_what_a_half_of_a_refused_job_still_computes_is_not_asked_for_again(
    picky: Caller, out: Path, fifo: Path
) -> None:
    items = write_items(out.parent, [{"read": str(fifo)}, {"dislike": "not this"}, 2])
    arguments = ("map", str(items), "--out", str(out), "--items-field", "prompts", "--shard", "2", "--in-flight", "1")
    with subprocess.Popen(command(*arguments), cwd=LIBRARY, env=environment(picky.endpoint.base_url)) as process:
        held = os.open(fifo, os.O_WRONLY)  # once the first half is in hand
        while out.with_name("results.jsonl.journal").read_bytes().count(b"\n") < 3:
            time.sleep(0.005)
        process.kill()
    jobs = picky.endpoint.queue.jobs
    before = len(jobs)
    with ThreadPoolExecutor(1) as pool:
        mapping = pool.submit(mapped, picky.endpoint.base_url, items, out, field="prompts", shard=2)
        while len(jobs) < before + 3:  # the last line, and twice what is left of the job that was refused
            time.sleep(0.005)
        os.write(held, b"x")
        os.close(held)
        assert mapping.result(30).lines == "line 2"
    assert not [job.id for job in [*jobs.values()][before:] if str(fifo).encode() in job.request]


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_cancels_what_is_in_flight_and_says_how_to_go_on(echo: Caller, out: Path, fifo: Path) -> None:
    items = write_items(out.parent, [{"read": str(fifo)}, *range(20)])
    with subprocess.Popen(
        command("map", str(items), "--out", str(out), "--shard", "10"),
        cwd=LIBRARY,
        env=environment(echo.endpoint.base_url),
        stderr=subprocess.PIPE,
    ) as process:
        held = os.open(fifo, os.O_WRONLY)  # once a worker reads
        process.send_signal(signal.SIGINT)
        said = process.stderr.read() if process.stderr else b""
    assert process.returncode == 130
    os.close(held)
    with suppress(OSError):  # until the cancelled job no longer reads
        while True:
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
            time.sleep(0.005)
    assert said == b"Interrupted. The running jobs were cancelled. Run the same command to continue.\n"
    with ThreadPoolExecutor(1) as pool:
        mapping = pool.submit(mapped, echo.endpoint.base_url, items, out, shard=10)
        fifo.write_text("free")
        assert mapping.result(30).failed == 0
    assert read(out) == envelopes_of(["free", *range(20)])


def test_a_journal_or_results_of_another_list_are_not_overwritten(echo: Caller, out: Path) -> None:
    items = write_items(out.parent, [1, 2])
    mapped(echo.endpoint.base_url, items, out, keep_journal=True)
    kept = out.read_bytes()
    assert mapped(echo.endpoint.base_url, items, out, keep_journal=True).jobs == 0
    with pytest.raises(BegunOtherwise, match=r"was begun with another list\. To go on keeps what it has of 0 items\."):
        mapped(echo.endpoint.base_url, write_items(out.with_name("others"), [3, 4]), out)
    out.with_name("results.jsonl.journal").unlink()
    with pytest.raises(
        CallFailed, match=r"exists, and there is no .*journal to continue from: choose another --out\.$"
    ):
        mapped(echo.endpoint.base_url, items, out)
    assert out.read_bytes() == kept


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (("--endpoint", "local2"), b"endpoint"),
        (("--job", "job.json"), b"--job"),
        (("--items-field", "prompts"), b"--items-field"),
        (("--files", "files"), b"--files"),
        (("--batch",), b"--batch"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_another_endpoint_or_other_options_are_asked_about_first(
    echo: Caller, out: Path, other: tuple[str, ...], name: bytes
) -> None:
    out.with_name("job.json").write_text('{"input": {"option": 2}}')
    other = tuple(str(out.with_name(each)) if each in ("job.json", "files") else each for each in other)
    items = write_items(out.parent, [1, {"bytes": "no"}])
    begun = ("map", str(items), "--out", str(out))
    assert client(echo.endpoint.base_url, *begun).returncode == 1
    jobs = len(echo.endpoint.queue.jobs)
    finished = client(echo.endpoint.base_url, *begun, *other)
    assert (finished.returncode, finished.stdout) == (2, b"")
    assert b"was begun with another " + name + b". To go on keeps what it has of " in finished.stderr
    assert finished.stderr.endswith(b"Choose another --out, or run it in a terminal, where it asks.\n")
    assert len(echo.endpoint.queue.jobs) == jobs


@pytest.mark.parametrize(("answer", "status"), [(b"y\n", 0), (b"n\n", 2)])
def test_on_a_terminal_it_goes_on_with_other_options_if_the_answer_is_yes(
    echo: Caller, out: Path, answer: bytes, status: int
) -> None:
    items = write_items(out.parent, [1, 2])
    mapped(echo.endpoint.base_url, items, out, keep_journal=True)
    write_items(out.parent, [1, 2, 3])
    job = out.with_name("job.json")
    job.write_text('{"input": {"option": 2}}')
    here, there = os.openpty()
    with subprocess.Popen(
        command("map", str(items), "--out", str(out), "--job", str(job)),
        cwd=LIBRARY,
        env=environment(echo.endpoint.base_url) | {"TERM": "dumb"},
        stdin=there,
        stdout=subprocess.PIPE,
        stderr=there,
    ) as process:
        os.close(there)
        said = b""
        while b"Go on? [y/N]" not in said:
            said += os.read(here, 1_000)
        os.write(here, answer)
        assert process.wait(30) == status
    os.close(here)
    assert len(read(out)) == (3 if status == 0 else 2)


@pytest.mark.parametrize("harm", [b"\xff", b"\n", b"}"], ids=["not UTF-8", "split", "not JSON"])
def test_a_damaged_line_of_the_journal_costs_no_other_line(echo: Caller, out: Path, harm: bytes) -> None:
    trace = out.with_name("trace")
    items = write_items(out.parent, [{"log": str(trace), "item": number} for number in range(100)])
    mapped(echo.endpoint.base_url, items, out, shard=50, keep_journal=True)
    out.unlink()
    journal = out.with_name("results.jsonl.journal")
    lines = journal.read_bytes().splitlines(keepends=True)
    hurt = next(number for number, line in enumerate(lines) if b'"index": 30,' in line)
    lines[hurt] = lines[hurt][:5] + harm + lines[hurt][6:]
    journal.write_bytes(b"".join(lines))
    finished = client(echo.endpoint.base_url, "map", str(items), "--out", str(out))
    assert finished.returncode == 0
    assert b".journal cannot be read. What was there is asked for again" in finished.stderr
    assert read(out) == envelopes_of(list(range(100)))
    assert len(trace.read_text().split()) == 100  # the endpoint still has the job


def listed(items: int) -> Items:
    return Items(io.BytesIO(b"".join(b"%d\n" % index for index in range(items))), 100)


def test_two_at_once_do_not_write_the_same_output(out: Path) -> None:
    with Journal(out, {}, listed(1)), pytest.raises(CallFailed, match="is being written by another process"):
        Journal(out, {}, listed(1)).__enter__()


def test_another_may_write_it_next_though_a_fork_of_the_first_has_it_open(out: Path) -> None:
    with Journal(out, {"job": 1}, listed(1)) as journal:
        fork = subprocess.Popen(["sleep", "1000"], pass_fds=[journal._file.fileno()])
    with fork:
        try:
            with Journal(out, {"job": 1}, listed(1)):
                pass
        finally:
            fork.kill()


@pytest.mark.parametrize("content", [b"", b"notes", b"notes\nmore", b'{"journal": 1}\n{"job": "1", "indices": [0]}\n'])
def test_a_file_that_is_no_journal_is_left_as_it_is(out: Path, content: bytes) -> None:
    journal = out.with_name("results.jsonl.journal")
    journal.write_bytes(content)
    if content:
        with pytest.raises(CallFailed, match="is not a journal of this version's map"):
            Journal(out, {}, listed(1)).__enter__()
        assert journal.read_bytes() == content
    else:
        with Journal(out, {}, listed(1)):
            assert re.fullmatch(rb'{"journal": 3, "check": "\w{8}"}\n', journal.read_bytes())


def test_a_journal_that_is_a_pipe_or_a_folder_is_a_sentence(out: Path) -> None:
    items = write_items(out.parent, [1])
    journal = out.with_name("results.jsonl.journal")
    for make in (os.mkfifo, os.mkdir):
        make(journal)
        with pytest.raises(CallFailed, match=r"results\.jsonl\.journal is not a file: choose another --out\.$"):
            mapped("http://127.0.0.1:1/v2", items, out)
        journal.rename(out.with_name(make.__name__))


@pytest.mark.parametrize("folder", [Path(), Path(), Path("/")])
def test_an_output_that_is_a_folder_is_a_sentence(folder: Path, out: Path) -> None:
    with pytest.raises(CallFailed, match=r"is a folder: choose a file for --out\.$"):
        mapped("http://127.0.0.1:1/v2", write_items(out.parent, [1]), folder)


def test_a_job_that_cannot_be_journaled_is_cancelled(echo: Caller, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Journal, job_id: str | None, indices: list[int]) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = {*echo.endpoint.queue.jobs}
    monkeypatch.setattr(Journal, "submitted", full)
    with pytest.raises(OSError, match="No space left"):
        mapped(echo.endpoint.base_url, write_items(out.parent, ["alone"]), out)
    [job] = [job for job_id, job in echo.endpoint.queue.jobs.items() if job_id not in before]
    assert job.final


class Interrupted(Client):
    """Is cancelled in a submit of which nothing is known."""

    async def submit(self, job: Job | bytes) -> str:
        cancelled = asyncio.CancelledError()
        cancelled.add_note("A job that was being sent may be queued.")
        raise cancelled


def test_lines_that_may_be_queued_after_an_interrupt_are_sent_again_only_if_told_to(
    echo: Caller, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = write_items(out.parent, [1, 2])
    for caller in (Interrupted, Client):
        with monkeypatch.context() as patch:
            patch.setattr(f"{__name__}.Client", caller)
            with pytest.raises(CallFailed, match="has 1 job with lines 1-2: "):
                mapped(echo.endpoint.base_url, items, out)
    mapped(echo.endpoint.base_url, items, out, again=True)
    assert read(out) == envelopes_of([1, 2])


def test_a_link_where_the_output_is_written_is_not_followed(out: Path) -> None:
    theirs = out.with_name("theirs")
    theirs.write_text("kept")
    out.with_name("results.jsonl.unfinished").symlink_to(theirs)
    mapped("http://127.0.0.1:1/v2", write_items(out.parent, []), out)
    assert (theirs.read_text(), out.read_bytes(), out.is_symlink()) == ("kept", b"", False)


def test_a_system_without_fcntl_has_all_but_map(echo: Caller, out: Path) -> None:
    hidden = "import sys; sys.modules['fcntl'] = None; from aggregating_worker.client.command import main; main("
    for arguments, status, said in (
        (["stream", "-"], 0, b'{"index": 0, "success": true, "result": 1}\n'),
        (["map", str(write_items(out.parent, [1])), "--out", str(out)], 2, b"map needs file locks as on Linux"),
    ):
        finished = subprocess.run(
            [sys.executable, "-c", f"{hidden}{arguments})"],
            input=b'{"input": {"items": [1]}}',
            env=environment(echo.endpoint.base_url),
            cwd=LIBRARY,
            capture_output=True,
        )
        assert finished.returncode == status
        assert (finished.stdout + finished.stderr).startswith(said)


def test_one_item_and_one_job_are_counted_in_the_singular(echo: Caller, out: Path) -> None:
    finished = client(echo.endpoint.base_url, "map", str(write_items(out.parent, [1])), "--out", str(out))
    assert finished.stdout.startswith(b"1 item, 0 failed, 1 job, ")


def test_a_list_without_items_is_done(out: Path) -> None:
    assert mapped("http://127.0.0.1:1/v2", write_items(out.parent, []), out).items == 0
    assert out.read_bytes() == b""


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "is not one JSON value: "),
        (b"2 3", "is not one JSON value: "),
        (b'"\xff"', "is not one JSON value: "),
        (b"NaN", "is not one JSON value: NaN is not JSON"),
        (b"[" * 100_000, "is not one JSON value: nested too deeply"),
        (b'"%s"' % (b"x" * 10_000_000), "has 10000002 bytes, and a job has room for "),
    ],
    ids=["brace", "two", "not UTF-8", "NaN", "deep", "large"],
)
def test_a_line_that_is_not_an_item_costs_itself_only(echo: Caller, out: Path, line: bytes, why: str) -> None:
    items = out.with_name("items.jsonl")
    items.write_bytes(b"1\n\n%s\n2\n" % line)
    finished = client(echo.endpoint.base_url, "map", str(items), "--out", str(out))
    assert finished.returncode == 1
    assert finished.stdout.startswith(b"3 items, 1 failed, 1 job, ")
    assert finished.stderr.startswith(f"Line 3: InvalidItem: the line {why}".encode())
    assert b"Failed: line 3. Mend " in finished.stderr
    first, bad, last = read(out)
    assert (first, last) == ({"index": 0, "success": True, "result": 1}, {"index": 2, "success": True, "result": 2})
    assert (bad["index"], bad["failure"]["type"]) == (1, "InvalidItem")


@pytest.mark.parametrize("job", [{"input": [1]}, {"policy": {}}, {"input": {"x": "x" * MAX_BODY}}], ids=["a", "b", "c"])
def test_a_job_that_cannot_carry_items_is_refused(out: Path, job: Any) -> None:
    with pytest.raises(CallFailed, match=r"^The job (should be an object with an input|leaves no room for items)"):
        mapped("http://127.0.0.1:1/v2", write_items(out.parent, [1]), out, job=job)


@settings(max_examples=50)
@given(
    sizes=st.lists(st.integers(1, 60), max_size=60),
    most=st.integers(1, 20),
    options=st.dictionaries(st.text(), st.integers()),
)
def test_every_item_is_in_one_shard_in_order_and_under_both_limits(
    sizes: list[int], most: int, options: dict[str, int]
) -> None:
    frame = Frame({"policy": {"ttl": 1}, "input": {**options, "items": "others"}})
    items = [b"1" * size for size in sizes]
    room = 60
    shards = list(cut(range(len(sizes)), sizes.__getitem__, lambda: most, room))
    assert [index for shard in shards for index in shard] == list(range(len(sizes)))
    shard: list[int]
    following: list[int]
    for shard, following in zip_longest(shards, shards[1:], fillvalue=[]):
        body = frame.body([items[index] for index in shard])
        assert json.loads(body) == {
            "policy": {"ttl": 1},
            "input": {**options, "items": [int(items[index]) for index in shard]},
        }
        used = len(body) - len(frame.body([]))
        assert used <= room
        assert len(shard) <= most
        assert not following or len(shard) == most or used + 1 + sizes[following[0]] > room


@settings(max_examples=50)
@given(order=st.permutations(range(8)), failed=st.sets(st.integers(0, 7)), place=st.floats(0, 1))
def test_a_journal_cut_anywhere_loses_its_last_line_only(order: list[int], failed: set[int], place: float) -> None:
    def envelope(index: int) -> Any:
        if index in failed:
            return {"index": index, "success": False, "failure": {"type": "é", "message": "\ud800\n"}}
        return {"index": index, "success": True, "result": "\u2028"}

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        with Journal(out, {"of": "é"}, listed(8)) as journal:
            for index in order:
                journal.submitted(f"job {index}", [index])
                journal.record(envelope(index))
            path = journal.path
        content = path.read_bytes()
        kept = content[: round(place * len(content))]
        path.write_bytes(kept)
        whole = [json.loads(line) for line in kept.splitlines(keepends=True) if line.endswith(b"\n")]
        recorded = [line["index"] for line in whole if "success" in line]
        with Journal(out, {"of": "é"}, listed(8)) as journal:
            assert [index for index in range(8) if index in journal] == sorted(recorded)
            assert (journal.done, journal.failed) == (len(recorded), len(failed.intersection(recorded)))
            submitted = [line["job"] for line in whole if "job" in line]
            waiting = [job for job in submitted if int(job.removeprefix("job ")) not in recorded]
            assert [job for job, _ in journal.unfinished()] == waiting
            for index in range(8):
                journal.record(envelope(index))
            journal.write_output()
        assert read(out) == [envelope(index) for index in range(8)]
