"""A stand-in for the platform's Batch Jobs, whose workers return their items, and which tests can make fail."""

import itertools
import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.calling import Answer, Request

Fault = Callable[[Request, Callable[[], Answer]], Answer]


@dataclass
class Batch:
    id: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Each as it will be listed, and its ``input``."""
    status: str = "DRAFT"

    def count(self, *statuses: str) -> int:
        return sum(request["status"] in statuses for request in self.requests)

    def state(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "endpointId": "local",
            "status": self.status,
            "requestTotal": len(self.requests),
            "requestInProgress": 0,
            "requestCompleted": self.count("COMPLETED"),
            "requestFailed": self.count("FAILED"),
        }


class BatchApi:
    """Answers for ``serve_http``. Each question about a batch's state makes ``pace`` of its requests run."""

    def __init__(self) -> None:
        self.batches: dict[str, Batch] = {}
        self.worked = Counter[Any]()
        """How often each item has been worked on."""
        self.pace = 1_000
        self.work: Callable[[dict[str, Any]], Any] = self.echo
        """Returns the output for an input, or None if the request fails."""
        self.calls = Counter[str]()
        self.meddle: Fault = lambda _, forward: forward()
        self._ids = itertools.count()
        self._dice = random.Random(4)
        self._lock = threading.Lock()

    def echo(self, given: dict[str, Any]) -> Any:
        first = given["first_index"]
        for item in given["items"]:
            self.worked[item] += 1
        return [{"index": first + n, "success": True, "result": item} for n, item in enumerate(given["items"])]

    def __call__(self, request: Request) -> Answer:
        def forward() -> Answer:
            with self._lock:
                return self._answer(request)

        return self.meddle(request, forward)

    def _answer(self, request: Request) -> Answer:
        path, _, query = request.path.removeprefix("/local/batch").partition("?")
        parts = path.strip("/").split("/") if path.strip("/") else []
        body = json.loads(request.body or b"null")
        self.calls[f"{request.method} {parts[1] if len(parts) > 1 else ''}"] += 1
        assert len(request.body) <= 10 * 2**20
        match request.method, parts:
            case "POST", []:
                if sum(batch.status in ("DRAFT", "FINALIZED") and not self._over(batch) for batch in self.all()) >= 10:
                    return Answer(429, b'{"error": "too many batches"}')
                batch = Batch(f"batch_{next(self._ids)}")
                self.batches[batch.id] = batch
                self._add(batch, body)
                return shown({"id": batch.id, "status": batch.status})
        if (found := self.batches.get(parts[0])) is None:
            return Answer(404, b'{"error": "batch not found"}')
        batch = found
        match request.method, parts[1:]:
            case "POST", ["requests"] if batch.status == "DRAFT":
                self._add(batch, body["requests"])
                return Answer(200, b"")
            case "POST", ["finalize"] if batch.status == "DRAFT":
                batch.status = "FINALIZED"
                return Answer(204)
            case "POST", ["cancel"]:
                batch.status = "CANCELLED"
                for each in batch.requests:
                    if each["status"] == "IN_QUEUE":
                        each["status"] = "CANCELLED"
                return Answer(200, b"{}")
            case "GET", []:
                self._work_off(batch)
                return shown(batch.state())
            case "GET", ["requests"]:
                options = {name: int(value) for name, value in (each.split("=") for each in query.split("&"))}
                page = batch.requests[options["offset"] :][: options["limit"]]
                rest = len(batch.requests) > options["offset"] + len(page)
                listed = [{name: value for name, value in each.items() if name != "input"} for each in page]
                return shown({"requests": listed, "total": len(batch.requests), **options, "hasMore": rest})
        return Answer(400, b'{"error": "batch is %s"}' % batch.status.encode())

    def all(self) -> list[Batch]:
        return list(self.batches.values())

    @staticmethod
    def _over(batch: Batch) -> bool:
        return batch.status == "FINALIZED" and not batch.count("IN_QUEUE")

    def _add(self, batch: Batch, requests: list[dict[str, Any]]) -> None:
        assert all(isinstance(request["input"], dict) for request in requests)
        batch.requests += [{"id": f"r{next(self._ids)}", "status": "IN_QUEUE", **each} for each in requests]
        assert len(batch.requests) <= 5_000

    def _work_off(self, batch: Batch) -> None:
        if batch.status != "FINALIZED":
            return
        waiting = [request for request in batch.requests if request["status"] == "IN_QUEUE"]
        self._dice.shuffle(waiting)
        for request in waiting[: self.pace]:
            output = self.work(request["input"])
            if output is None:
                request |= {"status": "FAILED", "error": "out of memory"}
            else:
                request |= {"status": "COMPLETED", "output": output}
        self._dice.shuffle(batch.requests)


def shown(content: Any) -> Answer:
    return Answer(200, json.dumps(content).encode())
