"""The local endpoint against a model of the platform, over HTTP: whatever is called, in whatever order.

The model is the platform's documentation (serverless/endpoints/job-states, operation-reference, send-requests,
advanced-workflows/batch-jobs) and, for workers, the SDK's source.
"""

import os
from collections import Counter, defaultdict
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aggregating_worker.local import LocalEndpoint, stops, worker_api
from aggregating_worker.local.batch import ACTIVE
from aggregating_worker.local.queue import RETRIES
from aggregating_worker.local.workers import WorkerProcess
from tests.conftest import Caller

OPEN = ("IN_QUEUE", "IN_PROGRESS")
PLACES = st.integers(0, 1)
OUTCOMES = st.sampled_from([{"output": [1]}, {"output": None}, {"error": "no luck"}])
IDLE = ["sleep", "600"]
"""A command that never polls: the machine stands in for its workers."""


@dataclass(eq=False)
class Expected:
    """A job as the platform has it."""

    id: str
    status: str = "IN_QUEUE"
    worker: str = ""
    """The worker that took it last, while it lives."""
    retries: int = 0
    outcome: dict[str, Any] = field(default_factory=dict)
    chunks: list[Any] = field(default_factory=list)
    """What no caller has fetched yet."""


@dataclass(eq=False)
class ExpectedBatch:
    """A batch as the platform has it; its requests get ids that can be known once it is finalized."""

    id: str
    requests: int
    status: str = "DRAFT"
    cancelled: bool = False
    jobs: list[Expected] = field(default_factory=list)

    @property
    def runs(self) -> bool:
        """Whether one of its requests waits or runs."""
        return any(job.status in OPEN for job in self.jobs)

    def cancel(self) -> None:
        """Drop what waits; what runs is finished, and only then it is ``CANCELLED``. One that has ended stays."""
        if self.status == "DRAFT" or self.runs:
            self.cancelled = True
            for job in self.jobs:
                job.status = "CANCELLED" if job.status == "IN_QUEUE" else job.status
            self.status = self.status if self.runs else "CANCELLED"

    @property
    def state(self) -> dict[str, Any]:
        """What is compared of the state that the endpoint shows."""
        ended = Counter(job.status for job in self.jobs)
        return {
            "id": self.id,
            "status": self.status,
            "requestTotal": self.requests,
            "requestInProgress": ended["IN_PROGRESS"],
            "requestCompleted": ended["COMPLETED"],
            "requestFailed": ended["FAILED"],
        }


class Served(RuleBasedStateMachine):
    """An endpoint over HTTP, with two workers and one for batches: this is who speaks for them."""

    def __init__(self) -> None:
        super().__init__()
        self.endpoint = LocalEndpoint(IDLE, workers=2)
        self.endpoint.__enter__()
        self.caller = Caller(self.endpoint, Path(os.devnull))
        for worker in self.endpoint.workers.running:
            self._as(worker, "GET", "job-take")  # or it would have died at its start

    def teardown(self) -> None:
        self.caller.http.close()
        self.endpoint.kill()
        self.endpoint.__exit__(None, None, None)

    def _as(
        self, worker: WorkerProcess, method: str, route: str, job: str = "", body: Any = None, **params: Any
    ) -> httpx2.Response:
        """Call a route of the worker protocol; a ping or a take of an idle worker would say that it heeds its stops."""
        path = "/".join(filter(None, ("", route, worker.id, job)))
        return self.caller.http.request(
            method, path, json=body, params={"job_in_progress": 1, **params}, headers={"Authorization": worker.secret}
        )


class Jobs(Served):
    """Jobs, from state to state: every route is called in any order, and each answer compared with the model's."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Expected] = []
        self.waiting: list[Expected] = []
        self.held: dict[str, list[Expected]] = defaultdict(list)
        self.stops: dict[str, set[str]] = defaultdict(set)
        self.counts = Counter(completed=0, failed=0, retried=0)

    @invariant()
    def health_counts_what_is_there(self) -> None:
        assert self.caller.get("/health").json()["jobs"] == {
            **self.counts,
            "inQueue": len(self.waiting),
            "inProgress": sum(map(len, self.held.values())),
        }

    # What callers do.

    @initialize(target=jobs)
    def begin(self) -> MultipleResults[Expected]:
        return multiple(*map(self._sent, range(6)))

    @rule(target=jobs, given=st.integers() | st.text())
    def submit(self, given: int | str) -> Expected:
        return self._sent(given)

    @rule(job=jobs)
    def look(self, job: Expected) -> None:
        answer = self.caller.get(f"/status/{job.id}")
        if job.status == "EXPIRED":
            assert answer.status_code == 404
            return
        state = answer.json()
        assert (state["status"], state.get("retries", 0)) == (job.status, job.retries)
        assert {name: state[name] for name in ("output", "error") if name in state} == job.outcome
        if job.status not in OPEN:
            again = self.caller.get(f"/status-sync/{job.id}").json()
            assert again == state

    @rule(job=jobs)
    def stream(self, job: Expected) -> None:
        if job.status in OPEN and not job.chunks:
            return  # it would wait
        answer = self.caller.get(f"/stream/{job.id}")
        if job.status == "EXPIRED":
            assert answer.status_code == 404
            return
        chunks = [{"output": chunk} for chunk in job.chunks]
        assert answer.json() == {"id": job.id, "status": job.status, "stream": chunks}
        job.chunks.clear()

    @rule(job=jobs)
    def cancel(self, job: Expected) -> None:
        answer = self.caller.post(f"/cancel/{job.id}")
        if job.status == "EXPIRED":
            assert answer.status_code == 404
            return
        if job.status in OPEN:
            self._end(job, "CANCELLED")
        assert answer.json() == {"id": job.id, "status": job.status}
        self.look(job)

    @rule(job=jobs)
    def retry(self, job: Expected) -> None:
        answer = self.caller.post(f"/retry/{job.id}")
        if job.status not in ("FAILED", "TIMED_OUT"):
            assert answer.status_code == (404 if job.status == "EXPIRED" else 400)
            return
        assert answer.json() == {"id": job.id, "status": "IN_QUEUE"}
        self._queue_again(job, 0)
        self.waiting.append(job)
        self.look(job)

    @rule()
    @precondition(lambda self: len(self.waiting) > 3)
    def purge(self) -> None:
        assert self.caller.post("/purge-queue").json() == {"removed": len(self.waiting), "status": "completed"}
        for job in [*self.waiting]:
            self._end(job, "CANCELLED")

    # What time does.

    @rule(job=jobs)
    def expire(self, job: Expected) -> None:
        if job.status != "EXPIRED":
            self.caller.get(f"/status/{job.id}?ttl=1").raise_for_status()
            while self.caller.get(f"/status/{job.id}").is_success:
                pass
            self._end(job, "EXPIRED")

    @rule(job=jobs)
    def run_out_of_time(self, job: Expected) -> None:
        if job in self.held[job.worker]:
            timed_out: Future[None] = Future()
            queue = self.endpoint.queue
            self.endpoint._loop.call_soon_threadsafe(
                lambda: timed_out.set_result(queue._time_out(queue.jobs[job.id]))  # type: ignore[func-returns-value]
            )
            timed_out.result()
            self._end(job, "TIMED_OUT", {"error": "executionTimeout exceeded"})
            self.look(job)

    # What workers do.

    @rule(place=PLACES, most=st.integers(1, 4))
    def take(self, place: int, most: int) -> None:
        worker = self.endpoint.workers.running[place]
        # A single job as an object, as the platform has it, or several as a list.
        answer = self._as(worker, "GET", "job-take-batch" if most > 1 else "job-take", batch_size=most)
        expected, self.waiting = self.waiting[:most], self.waiting[most:]
        if not expected:
            assert answer.status_code == 204
            return
        given = answer.json() if most > 1 else [answer.json()]
        assert [job["id"] for job in given] == [job.id for job in expected]
        for job in expected:
            job.status, job.worker = "IN_PROGRESS", worker.id
            self.stops[worker.id].discard(job.id)
            self.look(job)
        self.held[worker.id] += expected

    @rule(pick=st.integers(0), chunk=st.integers() | st.text())
    @precondition(lambda self: self._taken())
    def post_chunk(self, pick: int, chunk: int | str) -> None:
        job, worker = self._picked(pick)
        assert self._as(worker, "POST", "job-stream", job.id, {"output": chunk}).is_success
        job.chunks.append(chunk)

    @rule(pick=st.integers(0), outcome=OUTCOMES)
    @precondition(lambda self: self._taken())
    def post_result(self, pick: int, outcome: dict[str, Any]) -> None:
        job, worker = self._picked(pick)
        assert self._as(worker, "POST", "job-done", job.id, outcome).is_success
        self._end(job, "FAILED" if "error" in outcome else "COMPLETED", outcome)

    @rule(pick=st.integers(0), progress=st.integers())
    @precondition(lambda self: self._taken("COMPLETED", "FAILED"))
    def post_progress(self, pick: int, progress: int) -> None:
        job, worker = self._picked(pick, "COMPLETED", "FAILED")
        update = {"status": "IN_PROGRESS", "output": progress}
        assert self._as(worker, "POST", "job-done", job.id, update).is_success
        # After its end, too: then the job never ends, and nobody has it (runpod-python#250).
        job.status, job.outcome = "IN_PROGRESS", {"output": progress}

    @rule(job=jobs, place=PLACES, route=st.sampled_from(["job-stream", "job-done"]))
    def post_what_is_not_wanted(self, job: Expected, place: int, route: str) -> None:
        worker = self.endpoint.workers.running[place]
        if job.status != "IN_PROGRESS" or job.worker != worker.id:
            assert self._as(worker, "POST", route, job.id, {"output": "not mine"}).status_code == 404

    @rule(place=PLACES)
    @precondition(lambda self: any(self.stops.values()))
    def hear_of_stops(self, place: int) -> None:
        worker = self.endpoint.workers.running[place]
        answer = self._as(worker, "GET", "job-stop")
        assert self.stops.pop(worker.id, set()) <= set(answer.json()["jobsToStop"] if answer.content else ())

    @rule(place=PLACES)
    @precondition(lambda self: any(self.held.values()))
    def die(self, place: int) -> None:
        worker = self.endpoint.workers.running[place]
        if not worker.ready:
            return  # one that has never asked for a job is replaced after a pause only
        worker.kill()
        worker.exited.result(timeout=30)
        back = []
        for job in [*self.held[worker.id]]:
            if job.retries == RETRIES:
                self._end(job, "FAILED", {"error": f"job timed out after {RETRIES} retries"})
            else:
                self.counts["retried"] += 1
                self._queue_again(job, job.retries + 1)
                back.append(job)
        self.waiting[:0] = back
        for job in back:
            self.look(job)
        self.held.pop(worker.id, None)
        self.stops.pop(worker.id, None)
        while len(self.endpoint.workers.running) < 2:
            self.caller.get("/health")

    # The model's own moves.

    def _sent(self, given: int | str) -> Expected:
        job = Expected(self.caller.submit({"input": given}))
        self.waiting.append(job)
        self.sent.append(job)
        return job

    def _end(self, job: Expected, status: str, outcome: dict[str, Any] | None = None) -> None:
        """End a job; the worker that has it is told, unless it has ended it itself."""
        if status in ("CANCELLED", "TIMED_OUT", "EXPIRED") and job in self.held[job.worker]:
            self.stops[job.worker].add(job.id)
        if job in self.waiting:
            self.waiting.remove(job)
        if job in self.held[job.worker]:
            self.held[job.worker].remove(job)
        job.status = status
        job.outcome = job.outcome if outcome is None else outcome
        self.counts["completed"] += status == "COMPLETED"
        self.counts["failed"] += status in ("FAILED", "TIMED_OUT")

    @staticmethod
    def _queue_again(job: Expected, retries: int) -> None:
        job.status, job.worker, job.retries, job.outcome = "IN_QUEUE", "", retries, {}
        job.chunks.clear()

    def _taken(self, *also: str) -> list[tuple[Expected, WorkerProcess]]:
        """The jobs that run, or are in the states ``also``, whose workers live."""
        workers = {worker.id: worker for worker in self.endpoint.workers.running}
        return [
            (job, workers[job.worker])
            for job in self.sent
            if job.status in ("IN_PROGRESS", *also) and job.worker in workers
        ]

    def _picked(self, pick: int, *also: str) -> tuple[Expected, WorkerProcess]:
        taken = self._taken(*also)
        return taken[pick % len(taken)]


class Batches(Served):
    """Batches, in the same way; their requests have a worker of their own."""

    batches = Bundle("batches")

    def __init__(self) -> None:
        super().__init__()
        self.made: list[ExpectedBatch] = []

    @rule(target=batches, many=st.integers(0, 3))
    @precondition(lambda self: len(self.made) < ACTIVE)
    def create_batch(self, many: int) -> ExpectedBatch:
        answer = self.caller.post("/batch", json=[{"input": number} for number in range(many)])
        batch = ExpectedBatch(answer.json()["id"], many)
        self.made.append(batch)
        self._shows(answer, batch)
        return batch

    @rule(batch=batches, many=st.integers(0, 3))
    def add_requests(self, batch: ExpectedBatch, many: int) -> None:
        requests = [{"input": number} for number in range(many)]
        answer = self.caller.post(f"/batch/{batch.id}/requests", json={"requests": requests})
        if batch.status != "DRAFT":
            assert answer.status_code == 400
            return
        batch.requests += many
        self._shows(answer, batch)

    @rule(batch=batches)
    def remove_a_request(self, batch: ExpectedBatch) -> None:
        if not batch.requests:
            return
        [listed] = self.caller.get(f"/batch/{batch.id}/requests?limit=1").json()["requests"]
        answer = self.caller.http.request("DELETE", f"/batch/{batch.id}/requests/{listed['id']}")
        if batch.status != "DRAFT":
            assert answer.status_code == 400
            return
        batch.requests -= 1
        self._shows(answer, batch)

    @rule(batch=batches)
    def finalize(self, batch: ExpectedBatch) -> None:
        answer = self.caller.post(f"/batch/{batch.id}/finalize")
        if batch.status != "DRAFT":
            assert answer.status_code == 400
            return
        batch.status = "FINALIZED"
        self._shows(answer, batch)
        batch.jobs = [Expected(request["id"]) for request in self._listed(batch)]

    @rule()
    @precondition(lambda self: self._in_batches("IN_QUEUE"))
    def take_of_a_batch(self) -> None:
        given = self._as(self._batch_worker(), "GET", "job-take").json()
        [job] = [job for job in self._in_batches("IN_QUEUE") if job.id == given["id"]]
        assert given["batchId"] in [batch.id for batch in self.made if job in batch.jobs]
        job.status = "IN_PROGRESS"

    @rule(outcome=st.sampled_from([{"output": [1]}, {"error": "no luck"}]))
    @precondition(lambda self: self._in_batches("IN_PROGRESS"))
    def end_one_of_a_batch(self, outcome: dict[str, Any]) -> None:
        job = self._in_batches("IN_PROGRESS")[0]
        assert self._as(self._batch_worker(), "POST", "job-done", job.id, outcome).is_success
        job.status, job.outcome = "FAILED" if "error" in outcome else "COMPLETED", outcome
        for batch in self.made:
            if job in batch.jobs and batch.cancelled and not batch.runs:
                batch.status = "CANCELLED"

    @rule(batch=batches)
    def cancel_batch(self, batch: ExpectedBatch) -> None:
        answer = self.caller.post(f"/batch/{batch.id}/cancel")
        batch.cancel()
        self._shows(answer, batch)

    @rule(batch=batches)
    def look_at_a_batch(self, batch: ExpectedBatch) -> None:
        self._shows(self.caller.get(f"/batch/{batch.id}"), batch)
        listed = self._listed(batch)
        assert len(listed) == batch.requests
        if batch.jobs:
            shown = {each["id"]: (each["status"], each.get("output"), each.get("error")) for each in listed}
            expected = {job.id: (job.status, job.outcome.get("output"), job.outcome.get("error")) for job in batch.jobs}
            assert shown == expected

    def _batch_worker(self) -> WorkerProcess:
        while not self.endpoint.batch_workers.running:  # it is started with the first batch
            self.caller.get("/health")
        return self.endpoint.batch_workers.running[0]

    def _in_batches(self, status: str) -> list[Expected]:
        return [job for batch in self.made for job in batch.jobs if job.status == status]

    def _listed(self, batch: ExpectedBatch) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = self.caller.get(f"/batch/{batch.id}/requests").json()["requests"]
        return listed

    @staticmethod
    def _shows(answer: httpx2.Response, batch: ExpectedBatch) -> None:
        assert answer.json().items() >= batch.state.items()


@pytest.mark.parametrize("machine", [Jobs, Batches])
def test_the_endpoint_is_what_the_platform_documents(
    machine: type[Served], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # it is copied for each worker
    monkeypatch.setattr(worker_api, "POLL_SECONDS", 0.01)  # an empty queue says so at once
    monkeypatch.setattr(stops, "GRACE", 600.0)  # no worker is replaced because it does not stop
    run_state_machine_as_test(machine, settings=settings(max_examples=20, stateful_step_count=50, deadline=None))
