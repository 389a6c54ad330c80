"""Runpod's REST API v2 as far as endpoints go: the rules for what it is sent, and an account that keeps to them.

Read from https://api.runpod.io/v2/openapi.json. Only what ``aggregating-worker deploy`` sends is allowed here. Rules
that stand in the contract's prose are rules here too: either a CPU or a GPU, vCPUs in powers of two, a list of CUDA
versions or a least one, and no idle timeout where the number of requests counts.
"""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from jsonschema import Draft202012Validator

KEY = "rpa_" + "K" * 32

TEXT = {"type": "string"}
COUNT = {"type": "integer", "minimum": 0}
CPU = {
    "type": "array",
    "minItems": 1,
    "uniqueItems": True,
    "items": {
        "type": "object",
        "required": ["id", "vcpuCount"],
        "properties": {"id": {"type": "string", "minLength": 1}, "vcpuCount": {"enum": [2**n for n in range(1, 10)]}},
        "additionalProperties": False,
    },
}
CUDA = {"type": "string", "pattern": r"^\d+\.\d+$"}
GPU = {
    "type": "object",
    "properties": {
        "allowedCudaVersions": {"type": "array", "items": CUDA},
        "minCudaVersion": CUDA,
        "pools": {"type": "array", "minItems": 1, "items": TEXT},
        "excludedTypes": {"type": "array", "uniqueItems": True, "items": {"type": "string", "pattern": r"^\s*[^-\s]"}},
        "count": {"type": "integer", "minimum": 1},
    },
    "dependentRequired": {"excludedTypes": ["pools"]},
    "if": {"required": ["minCudaVersion"]},
    "then": {"properties": {"allowedCudaVersions": {"maxItems": 0}}},
    "additionalProperties": False,
}
IDS = {"type": "array", "items": TEXT}
BY_REQUESTS = {"properties": {"scaling": {"properties": {"type": {"const": "REQUEST_COUNT"}}}}, "required": ["scaling"]}
NOT_IDLE = {"properties": {"workers": {"properties": {"idleTimeout": False}}}}
SETTINGS = {
    "image": TEXT,
    "disk": {"type": "integer", "minimum": 1},
    "env": {"type": "object", "additionalProperties": TEXT},
    "registry": TEXT,
    "timeout": {"type": "integer"},
    "cpu": CPU,
    "gpu": GPU,
    "scaling": {
        "oneOf": [
            {
                "type": "object",
                "required": ["type", "queueDelay"],
                "properties": {"type": {"const": "QUEUE_DELAY"}, "queueDelay": {"type": "number", "minimum": 0.5}},
                "additionalProperties": False,
            },
            {
                "type": "object",
                "required": ["type", "requestCount"],
                "properties": {"type": {"const": "REQUEST_COUNT"}, "requestCount": {"type": "integer", "minimum": 1}},
                "additionalProperties": False,
            },
        ]
    },
    "flashboot": {"enum": ["OFF", "FLASHBOOT", "PRIORITY_FLASHBOOT"]},
    "dataCenterIds": IDS,
    "networkVolumes": IDS,
    "workers": {
        "type": "object",
        "properties": {"min": COUNT, "max": COUNT, "idleTimeout": {"type": "integer", "minimum": 1, "maximum": 3600}},
        "additionalProperties": False,
    },
}
CREATE = Draft202012Validator(
    {
        "type": "object",
        "required": ["name", "type", "image", "scaling"],
        "properties": {
            **SETTINGS,
            "gpu": {**GPU, "required": ["pools"]},
            "name": {"type": "string", "minLength": 1},
            "type": {"const": "QUEUE"},
        },
        "oneOf": [{"required": ["cpu"]}, {"required": ["gpu"]}],
        "if": BY_REQUESTS,
        "then": NOT_IDLE,
        "additionalProperties": False,
    }
)
UPDATE = Draft202012Validator(
    {
        "type": "object",
        "properties": SETTINGS,
        "not": {"required": ["cpu", "gpu"]},
        "if": BY_REQUESTS,
        "then": NOT_IDLE,
        "additionalProperties": False,
    }
)


def problem(status: int, detail: str, errors: list[str] | None = None) -> JSONResponse:
    """Return an error in the contract's shape (schema ``ErrorResponse``)."""
    content = {"title": "Problem", "status": status, "detail": detail} | ({"errors": errors} if errors else {})
    return JSONResponse(content, status, media_type="application/problem+json")


@dataclass
class Fault:
    """What the next request with ``method`` meets; no ``answer``: silence until the caller hangs up."""

    method: str
    answer: Response | None
    carried_out: bool = False


@dataclass
class Account:
    """Serves the endpoints of the account that ``KEY`` opens, from a thread, as a context manager."""

    endpoints: list[dict[str, Any]] = field(default_factory=list)
    requests: list[tuple[str, Any]] = field(default_factory=list)
    """Method and body of each request."""
    faults: list[Fault] = field(default_factory=list)
    health: list[Any] = field(default_factory=list)
    """What ``/health`` of any endpoint answers, one after the other; the last one stays."""

    def __enter__(self) -> Self:
        app = FastAPI()
        app.add_api_route("/v2/{endpoint_id}/health", self._health, methods=["GET"])
        app.add_api_route("/v2/serverless", self._serve, methods=["GET", "POST"])
        app.add_api_route("/v2/serverless/{endpoint_id}", self._serve, methods=["PATCH"])
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio does not, for a socket made like this
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
        self._thread = threading.Thread(target=asyncio.run, args=(self._server.serve([listener]),))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()

    def holds(self, name: str, **fields: Any) -> dict[str, Any]:
        """Add an endpoint and return it."""
        endpoint = {
            "id": f"ep{len(self.endpoints)}",
            "name": name,
            "type": "QUEUE",
            "image": "docker.io/me/worker:v1",
            "env": {},
            "workers": {"min": 0, "max": 3, "idleTimeout": 10},
            "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4},
            "dataCenterIds": [],
            "networkVolumes": [],
            "timeout": 600_000,
            "flashboot": "OFF",
            "createdAt": "2026-06-01T12:00:00Z",
            **fields,
        }
        self.endpoints.append(endpoint)
        return endpoint

    async def _health(self, request: Request) -> Response:
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return problem(401, "missing bearer token")
        health = self.health.pop(0) if len(self.health) > 1 else self.health[0]
        return health if isinstance(health, Response) else JSONResponse({"jobs": {}, "workers": health})

    async def _serve(self, request: Request) -> Response:
        body = json.loads(await request.body() or "null")
        self.requests.append((request.method, body))
        fault = next((fault for fault in self.faults if fault.method == request.method), None)
        if fault is None:
            return self._answer(request, body)
        self.faults.remove(fault)
        if fault.carried_out:
            self._answer(request, body)
        if fault.answer is None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
        return fault.answer or Response()

    def _answer(self, request: Request, body: Any) -> Response:
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return problem(401, "missing bearer token")
        if request.method == "GET":
            return JSONResponse({"endpoints": [shown(endpoint) for endpoint in self.endpoints]})
        rules = CREATE if request.method == "POST" else UPDATE
        if errors := [f"{error.json_path}: {error.message}" for error in rules.iter_errors(body)]:
            return problem(422, "Request validation failed.", errors)
        if request.method == "POST":
            return JSONResponse(shown(self.holds(**body)), 201)
        for endpoint in self.endpoints:
            if endpoint["id"] == request.path_params["endpoint_id"]:
                return self._update(endpoint, body)
        return problem(404, "endpoint not found")

    @staticmethod
    def _update(endpoint: dict[str, Any], body: dict[str, Any]) -> Response:
        """Replace each field that is sent; but of ``gpu`` what is left out stays, and CPU or GPU is for good."""
        if not {"cpu", "gpu"} & body.keys() <= endpoint.keys():
            return problem(400, "compute family cannot be changed")
        scaling = body.get("scaling", endpoint["scaling"])
        if scaling["type"] == "REQUEST_COUNT" and "idleTimeout" in body.get("workers", {}):
            return problem(400, "idleTimeout does not apply")
        gpu = {"gpu": {**endpoint["gpu"], **body["gpu"]}} if "gpu" in body else {}
        if gpu and gpu["gpu"].get("minCudaVersion") and gpu["gpu"].get("allowedCudaVersions"):
            return problem(400, "minCudaVersion and allowedCudaVersions exclude each other")
        endpoint |= body | gpu
        return JSONResponse(shown(endpoint))


def shown(endpoint: dict[str, Any]) -> dict[str, Any]:
    """Return ``endpoint`` as it is answered (schema ``Endpoint``)."""
    endpoint = dict(endpoint)
    if "cpu" in endpoint:
        endpoint["cpu"] = [{**flavor, "memory": 2 * flavor["vcpuCount"]} for flavor in endpoint["cpu"]]
    if endpoint["scaling"]["type"] == "REQUEST_COUNT":
        endpoint["workers"] = {name: limit for name, limit in endpoint["workers"].items() if name != "idleTimeout"}
    if "gpu" in endpoint:
        endpoint["gpu"] = {"allowedCudaVersions": [], "minCudaVersion": None, **endpoint["gpu"]}
    return endpoint


def lost_half_way() -> Iterator[bytes]:
    """The beginning of an answer that ends there."""
    yield b'{"id": "ep'
