"""What a fault costs, through the SDK's production loop: the table in docs/faults.md, row by row."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from aggregating_worker.local import LocalEndpoint
from aggregating_worker.testing.faulty import Fault, Faulty, Forward, Held, answers, cut_off, passes
from tests.conftest import Caller, MakeWorker, Serve

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
    """Calls a worker that takes a job only once the last one is delivered, or lost."""
    with behind(JOB_CONCURRENCY="1") as caller:
        yield caller


@pytest.fixture(scope="class")
def lockstep(behind: Behind) -> Iterator[Caller]:
    """Calls a worker that starts an item only once the last chunk is posted."""
    with behind(LOOKAHEAD="1") as caller:
        yield caller


def results(chunks: Any) -> list[Any]:
    return [envelope["result"] for envelope in chunks]


def ended(caller: Caller, job_id: str) -> dict[str, Any]:
    """Return the state of a job once it has ended."""
    for _ in caller.stream(job_id):
        pass
    return caller.status(job_id)


def no(times: int, status: int = 500, **headers: str) -> list[Fault]:
    return [answers(status, headers=headers)] * times


def moved(status: int) -> Fault:
    """Redirect to the same URL."""

    async def move(request: web.BaseRequest, _: Forward) -> web.Response:
        return web.Response(status=status, headers={"Location": str(request.rel_url)})

    return move


def to_a_page(status: int = 302) -> Fault:
    """Redirect as a gateway does that wants somebody to log in: with 301 to 303, what follows is a GET."""
    return answers(status, headers={"Location": "/v2/local/login"})


class TestStream:
    @pytest.mark.parametrize(
        ("faults", "posts", "streamed"),
        [
            (no(5), 8, [0, 1, 2]),
            ([answers(500, arrives=True)], 4, [0, 1, 1, 2]),
            (no(2, 429, **{"Retry-After": "0"}), 5, [0, 1, 2]),
            (no(1, 408) + no(1, 425) + no(1, 503, **{"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), 6, [0, 1, 2]),
            (no(1, 503, **{"Retry-After": "Wed, 21 Oct 2015 07:28:00 -0000"}), 4, [0, 1, 2]),
            (no(1, 503, **{"Retry-After": f"Wed, 21 Oct 2015 07:28:00 +{'9' * 20}"}), 4, [0, 1, 2]),
            ([cut_off()] * 3, 6, [0, 1, 2]),
            ([cut_off(arrives=True)], 4, [0, 1, 1, 2]),
            ([moved(307), moved(308), *no(1, 503)], 6, [0, 1, 2]),
            (no(2, 302), 5, [0, 1, 2]),
            ([to_a_page()] * 2, 5, [0, 1, 2]),
            (no(1, 404), 4, [0, 1, 2]),
            (no(1, 400), 3, [0, 2]),
            (no(1, 413), 3, [0, 2]),
        ],
        ids=[
            "500s",
            "500 but arrived",
            "429s",
            "others",
            "no zone",
            "no date",
            "cut off",
            "cut off but arrived",
            "moved",
            "moved to nowhere",
            "moved to a page",
            "404 once",
            "400",
            "413",
        ],
    )
    def test_a_chunk_is_sent_again_until_it_is_taken_or_refused_for_good(
        self, lockstep: Caller, faulty: Faulty, faults: list[Fault], posts: int, streamed: list[int]
    ) -> None:
        faulty.plan("job-stream", passes, *faults)
        faulty.plan("login", *no(2, 200))
        job_id = lockstep.run([0, 1, 2])
        assert results(lockstep.stream(job_id)) == streamed
        state = lockstep.status(job_id)
        assert (state["status"], results(state["output"])) == ("COMPLETED", [0, 1, 2])
        assert "retries" not in state
        assert faulty.seen["job-stream"] == posts
        assert faulty.met("job-stream")

    def test_all_that_a_job_sends_goes_through_one_connection(self, lockstep: Caller, faulty: Faulty) -> None:
        senders = set()

        async def note(request: web.BaseRequest, forward: Forward) -> web.Response:
            assert request.transport is not None
            senders.add(request.transport.get_extra_info("peername"))
            return await forward()

        faulty.plan("job-stream", *[note] * 3)
        faulty.plan("job-done", note)
        assert results(lockstep.runsync([0, 1, 2])["output"]) == [0, 1, 2]
        assert faulty.met("job-stream")
        assert faulty.met("job-done")
        assert len(senders) == 1

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

    def test_an_endpoint_that_was_gone_misses_nothing(self, lockstep: Caller, faulty: Faulty, fifo: Path) -> None:
        job_id = lockstep.run([0, {"read": str(fifo)}, 2, 3])
        chunks = lockstep.stream(job_id)
        assert next(chunks)["result"] == 0
        faulty.go_away()
        fifo.write_text("1")
        lockstep.wait_for_log(job_id, "sent again for up to 300 s")
        faulty.come_back()
        assert results(chunks) == ["1", 2, 3]
        state = lockstep.status(job_id)
        assert (state["status"], results(state["output"])) == ("COMPLETED", [0, "1", 2, 3])


class TestDone:
    @pytest.mark.parametrize(
        ("faults", "posts"),
        [
            (no(12), 13),
            ([cut_off()] * 5, 6),
            ([answers(500, arrives=True)], 3),
            ([cut_off(arrives=True)], 3),
            ([to_a_page(301), to_a_page(302), to_a_page(303)], 4),
            ([moved(307)], 2),
            ([moved(308)], 2),
            (no(1, 404), 2),
        ],
        ids=["500s", "cut off", "500 but arrived", "cut off but arrived", "to a page", "307", "308", "404 once"],
    )
    def test_a_result_is_sent_again_until_it_is_taken(
        self, caller: Caller, faulty: Faulty, faults: list[Fault], posts: int
    ) -> None:
        faulty.plan("job-done", *faults)
        faulty.plan("login", *no(3, 200))
        job_id = caller.run([0, 1])
        assert results(caller.stream(job_id)) == [0, 1]
        state = caller.status(job_id)
        assert (state["status"], results(state["output"])) == ("COMPLETED", [0, 1])
        assert results(caller.runsync([2])["output"]) == [2]
        assert faulty.seen["job-done"] == posts + 1

    def test_a_refusal_that_is_not_taken_keeps_no_other_job_waiting(self, caller: Caller, faulty: Faulty) -> None:
        held = Held()
        faulty.plan("job-done", held)
        refused = caller.run([])
        held.reached.result(20)
        assert results(caller.runsync([1])["output"]) == [1]
        held.release()
        while not (state := caller.status(refused)).get("error"):
            pass
        assert (state["status"], state["error"]) == ("FAILED", "No items provided")

    @pytest.mark.parametrize("status", [400, 401, 403, 422])
    def test_a_job_whose_result_is_refused_for_good_fails_with_the_reason(
        self, caller: Caller, faulty: Faulty, status: int
    ) -> None:
        faulty.plan("job-done", *no(1, status))
        job_id = caller.run([0, 1])
        assert results(caller.stream(job_id)) == [0, 1]
        state = caller.status(job_id)
        size = len(
            '{"output": [{"index": 0, "success": true, "result": 0}, {"index": 1, "success": true, "result": 1}]}'
        )
        sentence = f"The platform does not take the job's result of {size} bytes: it answered {status}."
        assert (state["status"], state["error"]) == ("FAILED", sentence)
        assert results(caller.runsync([2])["output"]) == [2]
        mine = [line for line in caller.log.read_text().splitlines() if job_id in line]
        assert sum(f"bytes are refused for good: the platform answered {status}" in line for line in mine) == 1

    def test_a_worker_of_which_everything_is_refused_ends_and_leaves_its_jobs_to_another(
        self, behind: Behind, faulty: Faulty
    ) -> None:
        with behind() as caller:
            [worker] = caller.endpoint.workers.running
            faulty.plan("job-done", *no(2, 401))
            job_id = caller.run([0])
            assert worker.exited.result(20) == 1
            assert results(ended(caller, job_id)["output"]) == [0]
            assert "The worker ends: the platform takes neither the result of a job nor" in caller.log.read_text()

    def test_a_worker_goes_on_whose_other_jobs_are_taken_while_all_of_one_is_refused(
        self, behind: Behind, faulty: Faulty
    ) -> None:
        reached, released = asyncio.Event(), asyncio.Event()

        async def later(_: web.BaseRequest, __: Forward) -> web.Response:
            reached.set()
            await released.wait()
            return web.Response(status=422)

        with behind() as caller:
            faulty.plan("job-done", *no(1, 422), later)
            job_id = caller.run([0])
            faulty.wait(reached)
            assert results(caller.runsync([1])["output"]) == [1]
            faulty.set(released)
            while caller.log.read_text().count("are refused for good") < 2:
                time.sleep(0.02)
            assert caller.runsync([2])["workerId"] == "worker-1"
            assert caller.status(job_id)["status"] == "IN_PROGRESS"
            caller.post(f"/cancel/{job_id}")


class TestForgotten:
    """A 404, twice and a second apart: the job's time to live is over, or it was purged."""

    def test_a_job_that_the_platform_has_forgotten_stops_and_no_other_does(
        self, behind: Behind, faulty: Faulty, tmp_path: Path
    ) -> None:
        async def unknown(_: web.BaseRequest, __: Forward) -> web.Response:
            return web.Response(status=404)

        with behind("processes", ITEM_CONCURRENCY="2", STATE=str(tmp_path)) as caller:
            other = caller.run([{"do": "wait", "value": str(tmp_path / "go")}])
            faulty.plan("job-stream", *[passes] * 9, *[unknown] * 40)
            job_id = caller.run([{"do": "sleep", "value": 0.2}] * 40)
            caller.wait_for_log(job_id, "stopped after")
            faulty.plan("job-stream")
            begun = (tmp_path / "notes").read_text().count("sleep")
            assert begun < 20
            (tmp_path / "go").touch()
            assert ended(caller, other)["status"] == "COMPLETED"
            assert (tmp_path / "notes").read_text().count("sleep") == begun
            mine = [line for line in caller.log.read_text().splitlines() if job_id in line and "ERROR" in line]
            assert ["answers 404 for this job" in line for line in mine] == [True]

    def test_a_result_for_a_job_that_is_forgotten_has_one_line(self, behind: Behind, faulty: Faulty) -> None:
        with behind() as caller:
            faulty.plan("job-done", *no(2, 404))
            job_id = caller.run([0])
            caller.wait_for_log(job_id, "Job stopped.")
            assert caller.runsync([1])["workerId"] == "worker-1"
            assert faulty.seen["job-done"] == 3
            assert caller.log.read_text().count("ERROR") == 1
            caller.post(f"/cancel/{job_id}")


class TestDelivery:
    def test_a_chunk_that_is_too_large_is_split(self, behind: Behind, faulty: Faulty) -> None:
        """Down to single envelopes; one that is still too large is in the aggregate."""

        async def small(request: web.BaseRequest, forward: Forward) -> web.StreamResponse:
            return await forward() if len(await request.read()) < 3_000 else web.Response(status=413)

        faulty.plan("job-stream", *[small] * 50)
        with behind(CHUNK_SIZE="64", ITEM_CONCURRENCY="1") as caller:
            job_id = caller.run([0, *[{"bytes": 1_000}] * 7, {"bytes": 5_000}, 1])
            streamed = [envelope["index"] for chunk in caller.stream(job_id) for envelope in chunk]
            assert streamed == [0, 1, 2, 3, 4, 5, 6, 7, 9]
            output = [envelope for chunk in caller.status(job_id)["output"] for envelope in chunk]
            assert [envelope["index"] for envelope in output] == list(range(10))
            assert "is too large for the stream" in caller.log.read_text()

    def test_while_one_job_is_stuck_in_delivery_others_go_on(self, behind: Behind, faulty: Faulty) -> None:
        """Its POST is never answered."""
        stuck = Held()
        faulty.plan("job-done", stuck)
        with behind() as caller:
            job_id = caller.run([0])
            stuck.reached.result(20)
            assert [results(caller.runsync([number])["output"]) for number in range(5)] == [[n] for n in range(5)]
            assert caller.status(job_id)["status"] == "IN_PROGRESS"
            stuck.release()
            assert results(ended(caller, job_id)["output"]) == [0]

    @pytest.mark.parametrize("refusal", [413, 400])
    def test_a_body_that_is_too_large_is_made_smaller(self, behind: Behind, faulty: Faulty, refusal: int) -> None:
        limit = 1_500_000
        sizes = []

        async def small(request: web.BaseRequest, forward: Forward) -> web.StreamResponse:
            sizes.append(len(await request.read()))
            return await forward() if sizes[-1] <= limit else web.Response(status=refusal)

        faulty.plan("job-done", *[small] * 50)
        with behind(CHUNK_SIZE="16") as caller:
            state = caller.runsync([*[{"bytes": 1_000}] * 400, *[{"bytes": 30_000}] * 60])
        assert state["status"] == "COMPLETED"
        envelopes = [envelope for chunk in state["output"] for envelope in chunk]
        assert [envelope["index"] for envelope in envelopes] == list(range(460))
        failed = [envelope for envelope in envelopes if not envelope["success"]]
        assert {envelope["failure"]["type"] for envelope in failed} == {"OutputTooLarge"}
        assert min(envelope["index"] for envelope in failed) >= 400
        assert limit * 0.9 < sizes[-1] <= limit

    def test_a_worker_that_is_told_to_stop_delivers_for_as_long_as_it_may_and_exits_1(
        self, behind: Behind, faulty: Faulty
    ) -> None:
        with behind(DELIVER_FOR="1") as caller:
            [worker] = caller.endpoint.workers.running
            faulty.plan("job-done", *no(100))
            job_id = caller.run([0])
            caller.wait_for_log(job_id, "sent again for up to 1 s")
            worker.process.send_signal(signal.SIGTERM)
            assert worker.exited.result(20) == 1
            assert "are given up after DELIVER_FOR: the platform answered 500." in caller.log.read_text()
            faulty.plan("job-done")

    def test_an_outage_that_ends_while_the_worker_stops_costs_nothing(self, behind: Behind, faulty: Faulty) -> None:
        with behind() as caller:
            [worker] = caller.endpoint.workers.running
            caller.runsync([0])
            stuck = Held()
            faulty.plan("job-stream", stuck)
            job_id = caller.run([1])
            stuck.reached.result(20)
            faulty.go_away()
            worker.process.send_signal(signal.SIGTERM)
            caller.wait_for_log(job_id, "sent again for up to 300 s")
            faulty.come_back()
            assert worker.exited.result(20) == 0
            assert results(caller.status(job_id)["output"]) == [1]

    def test_a_stream_that_is_never_taken_is_insisted_on_once_whatever_parts_there_are(
        self, behind: Behind, faulty: Faulty
    ) -> None:
        faulty.plan("job-stream", *no(1_000))
        with behind("parts", LOOKAHEAD="1", DELIVER_FOR="0.5") as caller:
            state = caller.runsync([{"yield": [str(number)]} for number in range(20)])
            assert results(state["output"]) == [str(number) for number in range(20)]
            assert caller.log.read_text().count("are sent again for up to") == 1
        faulty.plan("job-stream")

    def test_a_cancelled_job_is_not_delivered_any_more(self, behind: Behind, faulty: Faulty) -> None:
        with behind() as caller:
            faulty.plan("job-done", *no(1_000))
            job_id = caller.run([0])
            caller.wait_for_log(job_id, "sent again")
            caller.post(f"/cancel/{job_id}")
            caller.wait_for_log(job_id, "Job stopped.")
            faulty.plan("job-done")
            assert results(caller.runsync([1])["output"]) == [1]
            assert faulty.seen["job-done"] == 1


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

    @pytest.mark.parametrize(
        "answer",
        [
            "[5]",
            '[{"id": "x"}]',
            '[{}, null, {"id": 1, "input": {}}]',
            '[{"id": "x", "input": {}, "self": 1}]',
            '[{"id": "x", "input": {}, "__dict__": {}}]',
        ],
    )
    def test_a_list_of_no_jobs_costs_no_job(self, behind: Behind, faulty: Faulty, fifo: Path, answer: str) -> None:
        with behind() as caller:
            job_id = caller.run([0, {"read": str(fifo)}])
            chunks = caller.stream(job_id)
            assert next(chunks)["result"] == 0
            faulty.plan("job-take", answers(200, answer))
            others = [caller.runsync([1])["output"] for _ in range(3)]  # the first one answers the poll that waits
            assert [results(output) for output in others] == [[1]] * 3
            assert faulty.met("job-take")
            fifo.write_text("here")
            assert results(chunks) == ["here"]
            assert caller.status(job_id)["workerId"] == "worker-1"


class TestKilled:
    """As the system does it when memory runs out: at any moment, without warning."""

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
        """Another worker does the job again, from its first item; on the stream, the results come twice."""
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


def test_a_load_that_takes_ten_minutes_or_never_returns_is_said_and_costs_no_job(
    behind: Behind, tmp_path: Path
) -> None:
    """Half a minute is a tenth of a second here."""
    (tmp_path / "sitecustomize.py").write_text(
        "from aggregating_worker.process import process\nprocess.STILL_LOADING = 0.1\n"
    )
    fifos = [tmp_path / "worker-1", tmp_path / "worker-2"]
    for fifo in fifos:
        os.mkfifo(fifo)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with behind("slow_to_load", workers=2, LOADS=str(tmp_path), PYTHONPATH=path) as caller:
        job_id = caller.run([0])
        while caller.log.read_text().count("load() goes on after") < 4:
            time.sleep(0.02)
        assert caller.status(job_id)["status"] == "IN_QUEUE"
        fifos[1].write_text("go")
        assert results(caller.stream(job_id)) == [0]
        assert caller.status(job_id)["workerId"] == "worker-2"
        assert len(caller.endpoint.workers.running) == 2


class TestMachine:
    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_a_full_disk_under_the_log_costs_nothing(self, make_worker: MakeWorker) -> None:
        """Neither lines that the SDK's job loop prints, nor the task's."""
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
        """Each look at it is right, a day ahead or a day back: no timeout may depend on it."""
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


def test_results_that_the_platform_does_not_take_are_bounded_and_all_of_them_arrive(
    faulty: Faulty, behind: Behind
) -> None:
    """Of fifteen jobs with half a megabyte each, five are made while no final body is taken; then all of them are."""
    with behind(UNDELIVERED_BYTES="2000000", JOB_CONCURRENCY="15") as caller:
        caller.runsync([0])
        held = [Held() for _ in range(15)]
        faulty.plan("job-done", *held)
        jobs = [caller.run([{"bytes": 500_000}] * 2) for _ in range(15)]
        held[0].reached.result(20)
        held[1].reached.result(20)
        with pytest.raises(TimeoutError):
            held[3].reached.result(2)
        in_hand = [job_id for job_id in jobs if caller.status(job_id)["status"] == "IN_PROGRESS"]
        assert len(in_hand) <= 5
        for each in held:
            each.release()
        assert [ended(caller, job_id)["status"] for job_id in jobs] == ["COMPLETED"] * 15
