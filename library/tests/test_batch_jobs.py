"""Batch Jobs on the local endpoint: the platform's calls, states and limits, and workers of their own."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from aggregating_worker.local import LocalEndpoint, batch
from tests.conftest import Caller, Serve

IDLE = [sys.executable, "-c", "import signal; signal.pause()"]


class Batches:
    """Calls the routes for batches, and takes their requests as their worker would."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.http = caller.http

    def create(self, *inputs: Any) -> str:
        answer = self.http.post("/batch", json=[{"input": each} for each in inputs]).raise_for_status().json()
        assert answer["status"] == "DRAFT"
        batch_id: str = answer["id"]
        assert batch_id.startswith("batch_")
        return batch_id

    def add(self, batch_id: str, *inputs: Any) -> httpx2.Response:
        return self.http.post(f"/batch/{batch_id}/requests", json={"requests": [{"input": each} for each in inputs]})

    def finalize(self, batch_id: str) -> httpx2.Response:
        return self.http.post(f"/batch/{batch_id}/finalize")

    def state(self, batch_id: str) -> dict[str, Any]:
        state: dict[str, Any] = self.http.get(f"/batch/{batch_id}").raise_for_status().json()
        return state

    def counts(self, batch_id: str) -> tuple[int, int, int, int]:
        state = self.state(batch_id)
        total, completed, failed = (state[f"request{name}"] for name in ("Total", "Completed", "Failed"))
        return total, state["requestInProgress"], completed, failed

    def listed(self, batch_id: str, **page: int) -> dict[str, Any]:
        listed: dict[str, Any] = self.http.get(f"/batch/{batch_id}/requests", params=page).raise_for_status().json()
        return listed

    def take(self) -> dict[str, Any] | None:
        answer = self._as_worker("GET", "job-take")
        job: dict[str, Any] | None = answer.json() if answer.status_code == 200 else None
        return job

    def done(self, job: dict[str, Any], body: Any) -> None:
        self._as_worker("POST", "job-done", job["id"], json.dumps(body)).raise_for_status()

    def _as_worker(self, method: str, route: str, job: str = "", content: str = "") -> httpx2.Response:
        while not (workers := self.caller.endpoint.batch_workers.running):
            pass
        path = "/".join(filter(None, ("", route, workers[0].id, job)))
        headers = {"Authorization": workers[0].secret}
        return self.http.request(method, path, content=content, params={"gpu": "none"}, headers=headers)


@pytest.fixture
def batches() -> Iterator[Batches]:
    with LocalEndpoint(IDLE) as endpoint, Caller(endpoint, Path(os.devnull)) as caller:
        yield Batches(caller)


def test_a_batch_is_worked_off_by_workers_of_its_own(serve: Serve) -> None:
    caller = serve("hostile")
    assert caller.endpoint.batch_workers.running == []
    batches = Batches(caller)
    batch_id = batches.create({"items": ["a"]}, {"items": [1], "unknown": 1})
    batches.add(batch_id, {"items": ["b", "c"]})
    assert batches.counts(batch_id) == (3, 0, 0, 0)
    batches.finalize(batch_id)
    while sum(batches.counts(batch_id)[2:]) < 3:
        assert caller.runsync(["meanwhile"])["workerId"] == "worker-1"
    assert batches.counts(batch_id) == (3, 0, 2, 1)
    assert batches.state(batch_id)["status"] == "FINALIZED"
    [worker] = caller.endpoint.batch_workers.running
    assert worker.id == "batch-worker-1"
    requests = batches.listed(batch_id)["requests"]
    assert [request["status"] for request in requests].count("FAILED") == 1
    outputs = [request["output"] for request in requests if request["status"] == "COMPLETED"]
    assert sorted([envelope["result"] for envelope in output] for output in outputs) == [["a"], ["b", "c"]]
    assert all(request["startedAt"] <= request["completedAt"] for request in requests)
    assert all(request["completedAt"].endswith("Z") for request in requests)
    assert "there is no field unknown" in next(each["error"] for each in requests if each["status"] == "FAILED")


def test_a_request_is_a_job_that_names_its_batch(batches: Batches) -> None:
    batch_id = batches.create({"items": [1]})
    batches.finalize(batch_id)
    job = batches.take()
    assert job is not None
    assert job == {"id": job["id"], "batchId": batch_id, "input": {"items": [1]}}
    assert batches.counts(batch_id) == (1, 1, 0, 0)
    batches.done(job, {"output": [1]})
    assert batches.counts(batch_id) == (1, 0, 1, 0)
    assert batches.caller.get("/health").json()["jobs"]["completed"] == 0


def test_a_state_has_the_platforms_shape(batches: Batches) -> None:
    batch_id = batches.create()
    state = batches.state(batch_id)
    counts = dict.fromkeys(("requestTotal", "requestInProgress", "requestCompleted", "requestFailed"), 0)
    expected = {"id": batch_id, "endpointId": "local", "status": "DRAFT", **counts, "createdAt": state["createdAt"]}
    assert state == expected
    assert state["createdAt"] > 1_700_000_000_000
    assert batches.http.put(f"/batch/{batch_id}", json={"name": "mine"}).json() == {**expected, "name": "mine"}
    assert batches.http.put(f"/batch/{batch_id}", json={"name": 3}).status_code == 400
    newer = batches.create()
    assert [each["id"] for each in batches.http.get("/batch").json()] == [newer, batch_id]


def test_only_a_draft_can_be_changed(batches: Batches) -> None:
    batch_id = batches.create({"n": 1}, {"n": 2})
    before = batches.listed(batch_id)["requests"]
    url = f"/batch/{batch_id}/requests/{before[0]['id']}"
    assert batches.http.delete(url).status_code == 200
    assert batches.http.delete(url).status_code == 404
    assert [each["id"] for each in batches.listed(batch_id)["requests"]] == [before[1]["id"]]
    assert batches.finalize(batch_id).json()["status"] == "FINALIZED"
    for answer in (
        batches.add(batch_id, {"n": 3}),
        batches.finalize(batch_id),
        batches.http.delete(f"/batch/{batch_id}/requests/{before[1]['id']}"),
    ):
        assert answer.status_code == 400
        assert "only a DRAFT can be changed" in answer.json()["error"]
    assert batches.http.get("/batch/nobody").status_code == 404


def test_a_cancelled_batch_ends_once_what_runs_has_finished(batches: Batches) -> None:
    batch_id = batches.create(*({"n": number} for number in range(5)))
    batches.finalize(batch_id)
    job = batches.take()
    assert job is not None
    assert batches.http.post(f"/batch/{batch_id}/cancel").json()["status"] == "FINALIZED"
    statuses = [each["status"] for each in batches.listed(batch_id)["requests"]]
    assert sorted(statuses) == ["CANCELLED"] * 4 + ["IN_PROGRESS"]
    batches.done(job, {"output": "paid for"})
    assert batches.state(batch_id)["status"] == "CANCELLED"
    assert batches.counts(batch_id) == (5, 0, 1, 0)
    assert batches.http.post(f"/batch/{batch_id}/cancel").json()["status"] == "CANCELLED"
    draft = batches.create({"n": 1})
    assert batches.http.post(f"/batch/{draft}/cancel").json()["status"] == "CANCELLED"
    assert batches.add(draft, {"n": 2}).status_code == 400


def test_pages_of_a_list_have_every_request_once_and_not_as_they_were_added(batches: Batches) -> None:
    batch_id = batches.create(*range(1, 121))
    batches.finalize(batch_id)
    added: list[str] = []
    while len(added) < 120:
        job = batches.take()
        assert job is not None
        added.append(job["id"])
    first = batches.listed(batch_id)
    assert {key: first[key] for key in first if key != "requests"} == {
        "total": 120,
        "offset": 0,
        "limit": 50,
        "hasMore": True,
    }
    pages = [batches.listed(batch_id, offset=offset, limit=50) for offset in (0, 50, 100)]
    ids = [request["id"] for page in pages for request in page["requests"]]
    assert [page["hasMore"] for page in pages] == [True, True, False]
    assert sorted(ids) == sorted(added) != added
    assert ids != added


def test_the_platforms_limits_hold(batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = batches.http.post("/batch", json=[{"input": {"n": 1}}] * 5_001)
    assert (answer.status_code, answer.json()["error"]) == (400, "bad request: a batch has at most 5000 requests")
    full = batches.create(*[{"n": 1}] * 5_000)
    assert batches.add(full, {"n": 1}).status_code == 400
    large = batches.add(full, "x" * 10 * 2**20)
    assert (large.status_code, "10MiB" in large.json()["error"]) == (400, True)
    monkeypatch.setattr(batch, "QUEUED", 4_999)
    assert batches.finalize(full).status_code == 429
    monkeypatch.setattr(batch, "QUEUED", 5_000)
    assert batches.finalize(full).status_code == 200
    for _ in range(9):
        last = batches.create({"n": 1})
    assert batches.http.post("/batch", json=[]).status_code == 429
    batches.http.post(f"/batch/{last}/cancel")
    batches.create()


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[1]", b'[{"input": null}]', b'[{"input": 1e400}]', b'[{"input": 1, "policy": 3}]']
)
def test_what_is_no_list_of_requests_is_refused(batches: Batches, body: bytes) -> None:
    answer = batches.http.post("/batch", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("bad request")


def test_batches_want_the_key_that_was_set() -> None:
    with LocalEndpoint(IDLE, api_key="right") as endpoint:
        assert httpx2.get(f"{endpoint.url}/batch", headers={"Authorization": "wrong"}).status_code == 401
        assert httpx2.get(f"{endpoint.url}/batch", headers={"Authorization": "right"}).json() == []
