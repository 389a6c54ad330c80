"""The worker's promises, through the SDK's production loop: the same for every kind of task."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Caller, Serve
from tests.tasks.hostile import FAULTY, FINE


@pytest.fixture(scope="class")
def caller(request: pytest.FixtureRequest, serve: Serve) -> Caller:
    assert request.cls is not None
    return serve(request.cls.task, ITEM_CONCURRENCY="4", BATCH_SIZE="1", MAX_ITEMS="2000")


class Promises:
    """What holds for ``task``, one of ``tests/tasks``."""

    task: str

    def test_stream_and_aggregate_are_the_same_list(self, caller: Caller) -> None:
        """A plain function that returns a generator, or a wrapper around one, would never be answered here."""
        items = list(range(50))
        job_id = caller.run(items)
        streamed = list(caller.stream(job_id))
        state = caller.status(job_id)
        assert state["status"] == "COMPLETED"
        assert streamed == state["output"] == [{"index": i, "success": True, "result": i} for i in items]

    def test_one_bad_item_costs_no_other_item_its_result(self, caller: Caller) -> None:
        """The documented ``{"error": …}`` per item would fail the job and drop every earlier result."""
        items = [name for pair in zip(FAULTY, FINE, strict=False) for name in pair] + list(FAULTY) + list(FINE)
        job_id = caller.run(items)
        streamed = list(caller.stream(job_id))
        state = caller.status(job_id)
        assert state["status"] == "COMPLETED"
        assert streamed == state["output"]
        assert [envelope["index"] for envelope in streamed] == list(range(len(items)))
        for item, envelope in zip(items, streamed, strict=True):
            if item in FINE:
                assert envelope == {"index": envelope["index"], "success": True, "result": FINE[item][1]}
            else:
                assert envelope["success"] is False
                assert envelope["failure"].keys() == {"type", "message"}
                assert envelope["failure"]["type"] in FAULTY[item][1]
                assert len(envelope["failure"]["message"]) <= 500
        assert caller.runsync(["text"])["status"] == "COMPLETED"

    def test_tracebacks_go_to_the_log_under_the_job_and_nowhere_else(self, caller: Caller) -> None:
        state = caller.runsync(["raise", "text"])
        assert "Traceback" not in json.dumps(state)
        lines = [json.loads(line) for line in caller.log.read_text().splitlines() if line.startswith("{")]
        mine = [line["message"] for line in lines if line["requestId"] == state["id"]]
        assert any("Traceback" in message and "ValueError: no" in message for message in mine)
        assert sum(message.startswith("2 items, 1 failed, 0 stored, ") for message in mine) == 1

    def test_four_jobs_run_side_by_side(self, caller: Caller) -> None:
        """Each job has one blocking item that returns only when all four have been called."""
        with ThreadPoolExecutor(4) as callers:
            states = list(callers.map(caller.runsync, [["meet"]] * 4))
        assert [state["output"][0].get("result") for state in states] == [True] * 4

    def test_the_final_body_stays_within_the_limit_and_accounts_for_every_item(self, serve: Serve) -> None:
        caller = serve(self.task, CHUNK_SIZE="64", MAX_OUTPUT_BYTES="2000000")
        job_id = caller.run([{"bytes": 5_000}] * 1_800)
        chunks = list(caller.stream(job_id))
        state = caller.status(job_id)
        assert chunks == state["output"]
        assert max(len(chunk) for chunk in chunks) <= 64
        envelopes = [envelope for chunk in chunks for envelope in chunk]
        assert [envelope["index"] for envelope in envelopes] == list(range(1_800))
        kept = sum(envelope["success"] for envelope in envelopes)
        assert {envelope["failure"]["type"] for envelope in envelopes if not envelope["success"]} == {"OutputTooLarge"}
        body = json.dumps({"output": state["output"]}, ensure_ascii=False).encode()
        assert len(body) <= 2_000_000
        assert kept * 5_000 > 1_600_000

    def test_a_cancelled_job_stops_and_the_next_one_is_served(self, serve: Serve, fifo: Path, tmp_path: Path) -> None:
        caller = serve(self.task, ITEM_CONCURRENCY="2", BATCH_SIZE="1", LOOKAHEAD="4")
        trace = tmp_path / "trace"
        job_id = caller.run([0, {"read": str(fifo)}] + [{"touch": str(trace)}] * 500)
        assert next(caller.stream(job_id))["index"] == 0
        assert caller.post(f"/cancel/{job_id}").json() == {"id": job_id, "status": "CANCELLED"}
        assert caller.runsync(["text"])["status"] == "COMPLETED"
        assert caller.status(job_id)["status"] == "CANCELLED"
        assert not trace.exists() or trace.stat().st_size <= 4

    def test_sigterm_during_a_job_delivers_it_and_exits_0(self, serve: Serve, fifo: Path) -> None:
        caller = serve(self.task, BATCH_SIZE="1")
        job_id = caller.run([0, {"read": str(fifo)}, 2])
        results = caller.stream(job_id)
        assert next(results)["result"] == 0
        [worker] = caller.endpoint.workers.running
        caller.endpoint.terminate(worker)
        fifo.write_text("still here")
        assert [envelope["result"] for envelope in results] == ["still here", 2]
        assert caller.status(job_id)["status"] == "COMPLETED"
        assert worker.exited.result(10) == 0


class TestPlain(Promises):
    task = "hostile"

    @pytest.mark.parametrize(
        ("job", "sentence"),
        [
            ({"items": []}, "No items provided"),
            ({"option": 1}, "No items provided"),
            ({"items": "text"}, "The job's input cannot be used: items should be a valid list."),
            ({"items": [1], "option": "x"}, "option should be a valid integer"),
            ({"items": [1], "colour": "red"}, "there is no field colour"),
            ({"items": [1], "\ud800": 1}, "The job's input cannot be used: "),
            ([1], "The job's input must be an object"),
            ({"items": [0] * 2001}, "2001 items are too many for one job: send at most 2000."),
        ],
        ids=lambda value: value[:20] if isinstance(value, str) else "",
    )
    def test_a_job_that_cannot_start_fails_with_a_sentence(self, caller: Caller, job: Any, sentence: str) -> None:
        state = caller.post("/runsync", content=json.dumps({"input": job})).json()
        assert state["status"] == "FAILED"
        assert sentence in state["error"]
        assert "Traceback" not in state["error"]
        assert "output" not in state


class TestAsync(Promises):
    task = "hostile_async"

    def test_a_task_of_the_tasks_own_that_exits_costs_its_item_only(self, caller: Caller) -> None:
        output = caller.runsync([1, "subtask", 2])["output"]
        assert [envelope["success"] for envelope in output] == [True, False, True]
        assert output[1]["failure"]["type"] == "ProcessDied"
        assert caller.runsync(["text"])["status"] == "COMPLETED"


class TestBatch(Promises):
    task = "hostile_batch"


def test_a_job_whose_worker_is_killed_is_done_by_another(serve: Serve, fifo: Path) -> None:
    caller = serve("hostile")
    job_id = caller.run([0, {"read": str(fifo)}])
    assert next(caller.stream(job_id))["result"] == 0
    [worker] = caller.endpoint.workers.running
    os.kill(worker.process.pid, signal.SIGKILL)
    assert worker.exited.result(10) == -signal.SIGKILL
    fifo.write_text("again")
    assert [envelope["result"] for envelope in caller.stream(job_id)] == [0, "again"]
    state = caller.status(job_id)
    assert (state["status"], state["retries"], state["workerId"]) == ("COMPLETED", 1, "worker-2")


def test_a_worker_that_cannot_load_dies_and_takes_no_job(serve: Serve) -> None:
    caller = serve("unloadable")
    job_id = caller.run([1])
    [worker] = caller.endpoint.workers.running
    assert worker.exited.result(20) == 1
    assert "load() in task.py failed: FileNotFoundError: the model is not there" in caller.log.read_text()
    assert caller.get("/health").json()["workers"]["unhealthy"] == 1
    assert caller.status(job_id)["status"] == "IN_QUEUE"
