"""The POST that carries results: whatever a server answers, and in whatever pieces."""

import asyncio
import queue
import random
import re
import socket
import socketserver
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from yarl import URL

from aggregating_worker.delivery import post
from aggregating_worker.delivery.post import Answer, Poster
from tests.calling import running

T = TypeVar("T")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Serve = Callable[[socket.socket], None]


class Server:
    """Answers the POSTs of each connection with ``answers``, in pieces of so many bytes, and then hangs up."""

    def __init__(self, *answers: bytes, piece: int = 10**6) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self._answers = answers
        self._piece = piece

    def __call__(self, connection: socket.socket) -> None:
        self.connections += 1
        for answer in self._answers:
            if not (request := read_until(connection, b"body .")):
                return
            self.requests.append(request)
            for start in range(0, len(answer), self._piece):
                connection.sendall(answer[start : start + self._piece])


def read_until(connection: socket.socket, pattern: bytes) -> bytes:
    """Return what comes until it ends with ``pattern``, or the connection ends."""
    read = bytearray()
    while not re.search(pattern + b"$", read[-20:]) and (more := connection.recv(65_536)):
        read += more
    return bytes(read)


@contextmanager
def serving(serve: Serve, context: ssl.SSLContext | None = None) -> Iterator[URL]:
    """Serve each connection in a thread of its own; yield the address."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.settimeout(10)
            with suppress(OSError), ExitStack() as stack:
                serve(stack.enter_context(context.wrap_socket(self.request, True)) if context else self.request)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server, running(server):
        yield URL.build(scheme="https" if context else "http", host="localhost", port=server.server_address[1])


LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
"""A task may install uvloop."""


@pytest.fixture(params=LOOPS, autouse=True)
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOOPS, "tested", LOOPS[request.param])


def post_with(scenario: Callable[[Poster], Awaitable[T]]) -> T:
    """Return the result of ``scenario``; close the connections that it leaves open."""

    async def run() -> T:
        poster = Poster()
        try:
            return await scenario(poster)
        finally:
            for connection in (connection for resting in poster._resting.values() for connection in resting):
                connection.end()
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=LOOPS["tested"]) as runner:
        return runner.run(run())


def posted(server: Server, times: int = 1, pause: float = 0) -> list[Any]:
    """Post to ``server`` so many times; return the answers, or what was raised instead."""
    with serving(server) as url:

        async def scenario(poster: Poster) -> list[Any]:
            made: list[Any] = []
            for number in range(times):
                sent = poster.post(url, "/path?a=b", {"X-Request-ID": "7"}, [b"body %d" % number], 5)
                made += await asyncio.gather(sent, return_exceptions=True)
                await asyncio.sleep(pause)
            return made

        return post_with(scenario)


def test_what_is_sent_is_a_request_with_all_its_body() -> None:
    server = Server(OK)
    assert posted(server) == [Answer(200, "")]
    [request] = server.requests
    assert request.startswith(b"POST /path?a=b HTTP/1.1\r\nHost: localhost:")
    assert request.endswith(b"Content-Length: 6\r\nX-Request-ID: 7\r\n\r\nbody 0")


@pytest.mark.parametrize("size", [post.PIECE - 1, post.PIECE, post.PIECE + 1, 20_000_000])
def test_a_body_of_any_size_arrives_whole_and_leaves_the_connection_to_the_next(size: int) -> None:
    bodies = [random.Random(seed).randbytes(size - 6) + b"body %d" % seed for seed in range(2)]
    server = Server(OK, OK)

    async def scenario(poster: Poster) -> None:
        for body in bodies:
            assert await poster.post(url, "/", {}, [body], 20) == Answer(200, "")

    with serving(server) as url:
        post_with(scenario)
    assert [request.partition(b"\r\n\r\n")[2] for request in server.requests] == bodies
    assert server.connections == 1


@pytest.mark.parametrize(
    ("answer", "means"),
    [
        (OK, Answer(200, "")),
        (b"HTTP/1.1 204 No Content\r\n\r\n", Answer(204, "")),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", Answer(200, "")),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nTrailer: x\r\n\r\n", Answer(200, "")),
        (b"HTTP/1.1 200 OK\r\n\r\nto the end of the connection", Answer(200, "")),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", Answer(200, "")),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, Answer(200, "")),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </>\r\nRetry-After: 9\r\n\r\n" + OK, Answer(200, "")),
        (b"HTTP/1.1 429 Too Many Requests\r\nreTRY-after: 7\r\nContent-Length: 0\r\n\r\n", Answer(429, "7")),
        (b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", Answer(307, "")),
        (b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 9\r\n\r\ncut", Answer(500, "")),
        (b"HTTP/1.1 200 OK\r\nContent-Le", None),
        (b"HTTP/1.1 100 Continue\r\n\r\n", None),
        (b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", None),
        (b"SSH-2.0-OpenSSH_9.2\r\n", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", None),
        (b"", None),
    ],
)
@pytest.mark.parametrize("piece", [1, 10**6])
def test_an_answer_is_its_status_and_an_oserror_is_none(answer: bytes, means: Answer | None, piece: int) -> None:
    [made] = posted(Server(answer, piece=piece))
    if means is None:
        assert isinstance(made, OSError)
    else:
        assert made == means


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(piece=st.integers(1, 60), times=st.integers(1, 5), chunked=st.booleans())
def test_a_connection_serves_one_post_after_another(piece: int, times: int, chunked: bool) -> None:
    kept = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" if chunked else OK
    server = Server(*[kept] * times, piece=piece)
    assert posted(server, times) == [Answer(200, "")] * times
    assert server.connections == 1
    assert [request[-1:] for request in server.requests] == [b"%d" % number for number in range(times)]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
        OK + b"HTTP/1.1 500",
        OK + b"?",
    ],
    ids=["closed", "1.0", "another", "the beginning of another", "more"],
)
def test_a_connection_that_has_said_more_or_its_last_serves_no_other_post(answer: bytes) -> None:
    server = Server(answer, OK)
    assert posted(server, 3) == [Answer(200, "")] * 3
    assert server.connections == 3


def test_what_comes_unasked_is_no_answer_to_the_next_post() -> None:
    asked = threading.Event()

    def answer_twice(connection: socket.socket) -> None:
        read_until(connection, b"body")
        connection.sendall(OK)
        asked.wait(10)
        connection.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")
        connection.recv(1)

    async def scenario(poster: Poster) -> None:
        assert await poster.post(url, "/", {}, [b"body"], 5) == Answer(200, "")
        [[connection]] = poster._resting.values()
        asked.set()
        while connection.reusable:
            await asyncio.sleep(0.001)
        assert await poster.post(url, "/", {}, [b"body"], 5) == Answer(200, "")

    with serving(answer_twice) as url:
        post_with(scenario)


def test_a_connection_that_was_closed_while_the_worker_was_frozen_is_left_alone() -> None:
    """The event loop has not come to its end yet."""
    server = Server(OK)

    async def scenario(poster: Poster) -> list[Answer]:
        answers = [await poster.post(url, "/", {}, [b"body 0"], 5)]
        [[connection]] = poster._resting.values()
        while not connection.unread:
            pass  # frozen
        assert connection.reusable
        return [*answers, await poster.post(url, "/", {}, [b"body 1"], 5)]

    with serving(server) as url:
        assert post_with(scenario) == [Answer(200, "")] * 2
    assert server.connections == 2


def test_a_connection_that_has_rested_for_long_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post, "RESTED", 0.0)
    server = Server(OK, OK)
    assert posted(server, 2, pause=0.01) == [Answer(200, "")] * 2
    assert server.connections == 2


def test_an_answer_may_come_before_the_body_has_gone() -> None:
    over = threading.Event()

    def refuse(connection: socket.socket) -> None:
        connection.recv(1_000)
        connection.sendall(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
        over.wait(10)

    async def scenario(poster: Poster) -> None:
        for _ in range(2):  # the rest of the first body must not be taken for the second request
            assert await poster.post(url, "/", {}, [b"x" * 30_000_000], 5) == Answer(413, "")

    with serving(refuse) as url:
        post_with(scenario)
        over.set()


@pytest.mark.parametrize(
    ("head", "means"),
    [(b"HTTP/1.1 200 OK\r\n\r\n", Answer(200, "")), (b"HTTP/1.1 200 OK\r\nX: ", None), (b"HTTP/1.1 ", None)],
    ids=["body", "header", "status"],
)
def test_an_answer_without_an_end_is_not_waited_for(head: bytes, means: Answer | None) -> None:
    def go_on(connection: socket.socket) -> None:
        read_until(connection, b"body")
        connection.sendall(head)
        while True:
            connection.sendall(b"1" * 65_536)

    async def scenario(poster: Poster) -> None:
        [made] = await asyncio.gather(poster.post(url, "/", {}, [b"body"], 1_000), return_exceptions=True)
        assert made == means or (means is None and isinstance(made, OSError))

    with serving(go_on) as url:
        post_with(scenario)


def test_an_answer_whose_end_does_not_come_is_one_all_the_same() -> None:
    def stop(connection: socket.socket) -> None:
        read_until(connection, b"body")
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        connection.recv(1)

    async def scenario(poster: Poster) -> None:
        assert await poster.post(url, "/", {}, [b"body"], 0.2) == Answer(200, "")

    with serving(stop) as url:
        post_with(scenario)


def test_what_is_cancelled_or_takes_too_long_takes_its_connection_along() -> None:
    ended = queue.Queue[bytes]()

    def say_nothing(connection: socket.socket) -> None:
        read_until(connection, b"body")
        try:
            ended.put(connection.recv(1))
        except ConnectionError:
            ended.put(b"")

    async def scenario(poster: Poster) -> None:
        with pytest.raises(TimeoutError):
            await poster.post(url, "/", {}, [b"body"], 0.05)
        assert await asyncio.to_thread(ended.get, timeout=10) == b""
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await poster.post(url, "/", {}, [b"body"], 5)
        assert await asyncio.to_thread(ended.get, timeout=10) == b""

    with serving(say_nothing) as url:
        post_with(scenario)


def test_where_nobody_listens_or_all_are_turned_away_it_is_an_oserror() -> None:
    async def scenario(poster: Poster) -> None:
        for _ in range(20):
            with pytest.raises(OSError):
                await poster.post(url, "/", {}, [b"body"], 5)

    with serving(lambda _: None) as url:
        post_with(scenario)
    post_with(scenario)


@given(body=st.lists(st.binary(max_size=40)))
def test_no_piece_is_a_copy_of_more_than_a_little(body: list[bytes]) -> None:
    with mock.patch.object(post, "PIECE", 16):
        pieces = [*post._pieces(body)]
    assert b"".join(pieces) == b"".join(body)
    assert max(map(len, pieces), default=0) <= 16


def test_a_connection_that_nobody_takes_is_waited_for_in_bounds() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.create_connection(full.getsockname()):
        url = URL.build(scheme="http", host="127.0.0.1", port=full.getsockname()[1])

        async def scenario(poster: Poster) -> None:
            posting = asyncio.create_task(poster.post(url, "/", {}, [b"body 1"], 0.1))
            ended, _ = await asyncio.wait({posting}, timeout=20)
            assert ended
            with pytest.raises(TimeoutError):
                await posting

        post_with(scenario)


def test_over_tls_only_whoever_is_known_is_told_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(OK, OK)
    context, certificate = _certified(tmp_path)

    async def scenario(poster: Poster) -> list[Answer]:
        return [await poster.post(url, "/", {}, [b"body %d" % number], 5) for number in range(2)]

    with serving(server, context) as url:
        post._context.cache_clear()
        with pytest.raises(ssl.SSLCertVerificationError):
            post_with(scenario)
        assert server.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        post._context.cache_clear()
        assert post_with(scenario) == [Answer(200, "")] * 2
        post._context.cache_clear()
    assert server.connections == 1


def _certified(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """Return the TLS context of a server named localhost, and the file with its certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "known.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "private.pem").write_bytes(private)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "known.pem", folder / "private.pem")
    return context, folder / "known.pem"
