"""Runs the client as a command, and HTTP servers that fail as a real one does on a bad day."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseServer
from typing import Any

import httpx2

from aggregating_worker.client import Client
from tests.conftest import LIBRARY, off_runpod

KEY = "rpa_NOBODYS"


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    port: int
    """The caller's, so that of its connection."""


@dataclass
class Answer:
    """What a server sends: the body, or something worse.

    With a status of 0, nothing: it hangs up.
    With ``sent``, only that many bytes of the body, and then it hangs up. With ``drip``, the body again and again, with
    a pause of so many seconds, until the other side hangs up.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    sent: int | None = None
    drip: float | None = None


@contextmanager
def serve_http(answer: Callable[[Request], Answer], port: int = 0) -> Iterator[str]:
    """Serve HTTP with what ``answer`` returns; yield the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            answered = answer(Request(self.command, self.path, headers, body, self.client_address[1]))
            if not answered.status:
                self.close_connection = True
                return
            self.send_response(answered.status)
            length = {} if answered.drip is not None else {"Content-Length": str(len(answered.body))}
            for name, value in {**answered.headers, **length}.items():
                self.send_header(name, value)
            self.end_headers()
            while answered.drip is not None:
                try:
                    self.wfile.write(answered.body)
                except OSError:
                    return
                time.sleep(answered.drip)
            with suppress(OSError):  # the caller has not waited for it
                self.wfile.write(answered.body[: answered.sent])
            self.close_connection = self.close_connection or answered.sent is not None

        do_GET = do_POST = do_PUT = handle_any  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        with running(server):
            yield f"http://127.0.0.1:{server.server_port}"


@contextmanager
def running(server: BaseServer) -> Iterator[None]:
    """Have ``server`` serve from a thread of its own."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


@contextmanager
def proxy(base_url: str, meddle: Callable[[Request, Callable[[], Answer]], Answer]) -> Iterator[str]:
    """Serve in front of an endpoint; ``meddle`` gets each request and what forwards it. Yield the base URL to call."""
    with httpx2.Client(base_url=base_url.removesuffix("/v2"), timeout=30) as http:

        def answer(request: Request) -> Answer:
            def forward() -> Answer:
                headers = {"Authorization": request.headers["authorization"]}
                got = http.request(request.method, request.path, content=request.body, headers=headers)
                return Answer(got.status_code, got.content)

            return meddle(request, forward)

        with serve_http(answer) as address:
            yield f"{address}/v2"


def environment(base_url: str) -> dict[str, str]:
    return off_runpod(RUNPOD_API_KEY=KEY, RUNPOD_ENDPOINT_ID="local", RUNPOD_ENDPOINT_BASE_URL=base_url)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "aggregating_worker", *arguments]


def client(base_url: str, *arguments: str, given: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    """Run the client to its end."""
    finished = subprocess.run(
        command(*arguments), input=given, cwd=LIBRARY, env=environment(base_url), capture_output=True, timeout=60
    )
    for output in (finished.stdout, finished.stderr):
        assert b"Traceback" not in output
        assert KEY.encode() not in output
    return finished


def call(base_url: str, operation: Callable[[Client], Any]) -> Any:
    async def scenario() -> Any:
        async with Client("local", api_key=KEY, base_url=base_url) as caller:
            return await operation(caller)

    return asyncio.run(scenario())


def job_of(*items: Any) -> bytes:
    return json.dumps({"input": {"items": items}}).encode()


def lines(output: bytes) -> list[Any]:
    return [json.loads(line) for line in output.splitlines()]
