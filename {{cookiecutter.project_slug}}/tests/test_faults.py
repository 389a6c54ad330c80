"""What a fault costs, through the SDK's production loop: the table of the README, row by row."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from endpoint.local import LocalEndpoint
from tests.conftest import Caller, MakeWorker, Serve
from tests.faulty import Fault, Faulty, Held, answers, cut_off, passes

Behind = Callable[..., AbstractContextManager[Caller]]


@pytest.fixture(scope="class")
def faulty() -> Iterator[Faulty]:
    with Faulty() as faulty:
        yield faulty


@pytest.fixture(scope="class")
def behind(faulty: Faulty, make_worker: MakeWorker, tmp_path_factory: pytest.TempPathFactory) -> Behind:
    """Serve an endpoint whose workers reach it through ``faulty`` only; callers reach it directly."""

    @contextmanager
    def start(task: str = "hostile", workers: int = 1, **env: str) -> Iterator[Caller]:
        path = tmp_path_factory.mktemp("log") / "worker.log"
        with path.open("wb") as log:
            endpoint = LocalEndpoint(faulty.command, cwd=make_worker(task), workers=workers, env=env, log=log)
            with endpoint, Caller(endpoint, path) as caller:
                faulty.endpoint_url = endpoint.url
                yield caller

    return start


@pytest.fixture(scope="class")
def caller(behind: Behind) -> Iterator[Caller]:
    """Whose worker takes a job once the one before it is delivered, or lost."""
    with behind(JOB_CONCURRENCY="1") as caller:
        yield caller


@pytest.fixture(scope="class")
def lockstep(behind: Behind) -> Iterator[Caller]:
    """Whose worker starts an item once the chunk before it is posted."""
    with behind(LOOKAHEAD="1") as caller:
        yield caller


def results(chunks: Any) -> list[Any]:
    return [envelope["result"] for envelope in chunks]


def ended(caller: Caller, job_id: str) -> dict[str, Any]:
    """Return the state of a job once it has ended."""
    for _ in caller.stream(job_id):
        pass
    return caller.status(job_id)


class TestStream:
    @pytest.mark.parametrize(
        ("faults", "posts", "streamed"),
        [
            ([answers(500)], 4, [0, 1, 2]),
            ([answers(500, arrives=True)], 4, [0, 1, 1, 2]),
            ([answers(500)] * 3, 5, [0, 2]),
            ([answers(400)], 3, [0, 2]),
            ([answers(429)], 3, [0, 2]),
            ([cut_off()], 3, [0, 2]),
            ([cut_off(arrives=True)], 3, [0, 1, 2]),
        ],
        ids=["500 once", "500 but arrived", "500 always", "400", "429", "cut off", "cut off but arrived"],
    )
    def test_a_chunk_that_is_not_taken_is_in_the_aggregate(
        self, lockstep: Caller, faulty: Faulty, faults: list[Fault], posts: int, streamed: list[int]
    ) -> None:
        faulty.plan("job-stream", passes, *faults)
        job_id = lockstep.run([0, 1, 2])
        assert results(lockstep.stream(job_id)) == streamed
        state = lockstep.status(job_id)
        assert (state["status"], results(state["output"])) == ("COMPLETED", [0, 1, 2])
        assert "retries" not in state
        assert faulty.seen["job-stream"] == posts
        assert faulty.met("job-stream")

    def test_a_slow_answer_costs_nothing(self, lockstep: Caller, faulty: Faulty) -> None:
        slow = Held(arrives=True)
        faulty.plan("job-stream", slow)
        job_id = lockstep.run([0, 1, 2])
        chunks = lockstep.stream(job_id)
        assert next(chunks)["result"] == 0
        slow.reached.result(20)
        slow.release()
        assert results(chunks) == [1, 2]
        assert results(lockstep.status(job_id)["output"]) == [0, 1, 2]

    def test_an_endpoint_that_was_gone_misses_the_chunks_of_that_time_only(
        self, lockstep: Caller, faulty: Faulty, tmp_path: Path
    ) -> None:
        """For however long: the SDK does not try again when it cannot connect."""
        fifos = [tmp_path / "leave", tmp_path / "return"]
        for fifo in fifos:
            os.mkfifo(fifo)
        job_id = lockstep.run([0, {"read": str(fifos[0])}, 2, {"read": str(fifos[1])}, 4])
        chunks = lockstep.stream(job_id)
        assert next(chunks)["result"] == 0
        faulty.go_away()
        fifos[0].write_text("1")
        with fifos[1].open("w") as begun:  # and so the chunks before it are posted
            faulty.come_back()
            begun.write("3")
        assert results(chunks) == ["3", 4]
        state = lockstep.status(job_id)
        assert (state["status"], results(state["output"])) == ("COMPLETED", [0, "1", 2, "3", 4])


class TestDone:
    @pytest.mark.parametrize(
        ("faults", "posts"),
        [
            ([answers(500)], 2),
            ([answers(500, arrives=True)], 2),
            ([cut_off(arrives=True)], 1),
        ],
        ids=["500 once", "500 but arrived", "cut off but arrived"],
    )
    def test_a_result_that_arrives_is_the_jobs_whatever_is_answered(
        self, caller: Caller, faulty: Faulty, faults: list[Fault], posts: int
    ) -> None:
        faulty.plan("job-done", *faults)
        job_id = caller.run([0, 1])
        assert results(caller.stream(job_id)) == [0, 1]
        state = caller.status(job_id)
        assert (state["status"], results(state["output"])) == ("COMPLETED", [0, 1])
        assert results(caller.runsync([2])["output"]) == [2]
        assert faulty.seen["job-done"] == posts + 1


class TestLostResult:
    @pytest.mark.parametrize(
        ("faults", "posts"),
        [([answers(500)] * 3, 3), ([answers(400)], 1), ([cut_off()], 1)],
        ids=["500 always", "400", "cut off"],
    )
    def test_what_never_arrives_was_in_the_stream(
        self, caller: Caller, faulty: Faulty, faults: list[Fault], posts: int
    ) -> None:
        """The job stays in progress, and so will time out; the worker goes on to the next."""
        faulty.plan("job-done", *faults)
        job_id = caller.run([0, 1])
        chunks = caller.stream(job_id)
        assert results([next(chunks), next(chunks)]) == [0, 1]
        assert results(caller.runsync([2])["output"]) == [2]
        assert faulty.seen["job-done"] == posts + 1
        assert "Failed to return job results." in caller.log.read_text()
        state = caller.status(job_id)
        assert state["status"] == "IN_PROGRESS"
        assert "output" not in state
        caller.post(f"/cancel/{job_id}")


NO_JOBS: list[Fault] = [
    answers(400),
    answers(204),
    answers(500),
    answers(502, "<html>", "text/html"),
    answers(200, "<html>", "text/html"),
    answers(200),
    answers(200, "{"),
    answers(200, "null"),
    answers(200, '"text"'),
    answers(200, "{}"),
    answers(200, '{"id": "x"}'),
    cut_off(),
    cut_off(),
    answers(429),
]


class TestTake:
    def test_an_answer_that_is_no_job_costs_no_job(self, behind: Behind, faulty: Faulty) -> None:
        faulty.plan("job-take", *NO_JOBS)
        with behind() as caller:
            state = caller.runsync([0, 1])
            assert (state["status"], results(state["output"])) == ("COMPLETED", [0, 1])
            assert state["workerId"] == "worker-1"
            assert faulty.met("job-take")

    @pytest.mark.parametrize("answer", ["[5]", '[{}, null, {"id": 1, "input": {}}]', '[{"id": "x"}]'])
    def test_a_list_of_no_jobs_costs_no_job(self, behind: Behind, faulty: Faulty, fifo: Path, answer: str) -> None:
        with behind() as caller:
            job_id = caller.run([0, {"read": str(fifo)}])
            chunks = caller.stream(job_id)
            assert next(chunks)["result"] == 0
            faulty.plan("job-take", answers(200, answer))
            others = [caller.runsync([1])["output"] for _ in range(3)]  # the first one ends the poll under way
            assert [results(output) for output in others] == [[1]] * 3
            assert faulty.met("job-take")
            fifo.write_text("here")
            assert results(chunks) == ["here"]
            assert caller.status(job_id)["workerId"] == "worker-1"


class TestKilled:
    """As the system does it when memory runs out: at any moment, with no word."""

    def test_while_it_loads_no_job_is_touched(self, behind: Behind, tmp_path: Path) -> None:
        fifos = [tmp_path / "worker-1", tmp_path / "worker-2"]
        for fifo in fifos:
            os.mkfifo(fifo)
        with behind("slow_to_load", workers=2, LOADS=str(tmp_path)) as caller:
            job_id = caller.run([0, 1])
            first, second = caller.endpoint.workers.running
            with fifos[0].open("w"):
                os.kill(first.process.pid, signal.SIGKILL)
                assert first.exited.result(20) == -signal.SIGKILL
            fifos[1].write_text("go")
            assert results(caller.stream(job_id)) == [0, 1]
            state = caller.status(job_id)
            assert (state["status"], state["workerId"]) == ("COMPLETED", second.id)
            assert "retries" not in state

    @pytest.mark.parametrize(
        ("route", "arrives", "streamed", "retries"),
        [
            ("job-stream", False, [0, 1], 1),
            ("job-stream", True, [0, 0, 1], 1),
            ("job-done", False, [0, 1, 0, 1], 1),
            ("job-done", True, [0, 1], None),
        ],
    )
    def test_while_it_posts(
        self, behind: Behind, faulty: Faulty, route: str, arrives: bool, streamed: list[int], retries: int | None
    ) -> None:
        """Another worker does the job again, from its first item; a caller who looks on sees those twice."""
        held = Held(arrives=arrives)
        faulty.plan(route, held)
        with behind() as caller:
            job_id = caller.run([0, 1])
            held.reached.result(20)
            seen = [chunk["output"] for chunk in caller.get(f"/stream/{job_id}?wait=1000").json()["stream"]]
            [worker] = caller.endpoint.workers.running
            os.kill(worker.process.pid, signal.SIGKILL)
            assert worker.exited.result(20) == -signal.SIGKILL
            seen += caller.stream(job_id)
            assert results(seen) == streamed
            state = caller.status(job_id)
            assert (state["status"], results(state["output"])) == ("COMPLETED", [0, 1])
            assert state.get("retries") == retries


class TestMachine:
    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_a_full_disk_under_the_log_costs_nothing(self, make_worker: MakeWorker) -> None:
        """Neither the SDK's lines in its own loops, nor the task's."""
        with (
            Path("/dev/full").open("wb", buffering=0) as log,
            LocalEndpoint(cwd=make_worker("hostile"), log=log) as endpoint,
            Caller(endpoint, Path("/dev/full")) as caller,
        ):
            items = [{"print": "to the log"}, "raise", 2]
            for _ in range(2):
                state = caller.runsync(items)
                assert [envelope["success"] for envelope in state["output"]] == [True, False, True]
                assert state["workerId"] == "worker-1"

    @pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the address space")
    def test_memory_that_is_refused_costs_the_item_that_asked_for_it(
        self, make_worker: MakeWorker, tmp_path: Path
    ) -> None:
        limited = ["sh", "-c", f'ulimit -v 16000000; exec "{sys.executable}" -u handler.py']
        with (
            (tmp_path / "worker.log").open("wb") as log,
            LocalEndpoint(limited, cwd=make_worker("hostile"), log=log) as endpoint,
            Caller(endpoint, tmp_path / "worker.log") as caller,
        ):
            output = caller.runsync([0, {"bytes": 64_000_000_000}, 2, {"bytes": 3}])["output"]
            assert [envelope.get("result") for envelope in output] == [0, None, 2, "xxx"]
            assert output[1]["failure"]["type"] == "MemoryError"

    def test_a_clock_that_jumps_costs_nothing(self, serve: Serve, fifo: Path, tmp_path: Path) -> None:
        """A day ahead or back with every look at it: neither the item that hangs nor the others are timed by it."""
        (tmp_path / "sitecustomize.py").write_text(
            "import itertools, time\n"
            "real, jumps = time.time, itertools.cycle((0, 86_400, -86_400))\n"
            "time.time = lambda: real() + next(jumps)\n"
            "print('The clock jumps.')\n"
        )
        caller = serve("hostile", PYTHONPATH=str(tmp_path), ITEM_TIMEOUT="2")
        job_id = caller.run([0, {"read": str(fifo)}, 2])
        chunks = list(caller.stream(job_id))
        assert [chunk.get("result") for chunk in chunks] == [0, None, 2]
        assert chunks[1]["failure"]["type"] == "TimeoutError"
        assert caller.status(job_id)["output"] == chunks
        assert "The clock jumps." in caller.log.read_text()
