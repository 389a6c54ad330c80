"""The network: connections to the platform, which reads requests and may answer late, by half, or not at all."""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httptools

from tests.simulation.clock import World

NEVER = 1e6


@dataclass(eq=False)
class Request:
    """A request of the worker's."""

    connection: "Connection"
    method: str
    path: list[str]
    query: dict[str, list[str]]
    body: bytes

    @property
    def cut(self) -> bool:
        """Whether the worker has hung up, as far as the platform knows."""
        return self.connection.closed

    def answer(self, status: int, body: bytes = b"", *, headers: str = "", upto: int | None = None) -> bool:
        """Answer, or ``upto`` so many bytes and hang up; return whether the worker was there to be answered."""
        kind = "Content-Type: application/json\r\n" if body else ""
        head = f"HTTP/1.1 {status} Said\r\n{kind}{headers}Content-Length: {len(body)}\r\n\r\n"
        sent = self.connection.send((head.encode() + body)[:upto])
        if upto is not None:
            self.hang_up()
        return sent

    def hang_up(self) -> None:
        """Close the connection."""
        self.connection.close()


@dataclass(eq=False)
class Connection:
    """The platform's end of a connection."""

    world: World
    end: socket.socket
    ask: Callable[[Request], None]
    closed: bool = False
    _requests: int = 0
    _url: bytes = b""
    _body: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.end.setblocking(False)
        self._parser = httptools.HttpRequestParser(self)
        self.world.listen(self.end, self._read)

    def _read(self) -> None:
        try:
            data = self.end.recv(262_144)
        except OSError:
            data = b""
        if data:
            self._parser.feed_data(data)
        else:
            self.close()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        url = urlsplit(self._url.decode())
        method, path = self._parser.get_method().decode(), url.path.strip("/").split("/")
        request = Request(self, method, path, parse_qs(url.query), b"".join(self._body))
        self._url, self._body = b"", []
        self._requests += 1
        self.ask(request)

    def send(self, data: bytes) -> bool:
        try:
            return not self.closed and bool(self.end.send(data))
        except OSError:
            return False

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.world.hang_up(self.end)

    def rest(self, seconds: float) -> None:
        """Hang up after so long without another request, as servers do."""
        requests = self._requests
        self.world.after(seconds, lambda: self.close() if self._requests == requests else None)


@dataclass(eq=False)
class Network:
    """Leads every connection to ``ask``; ``down`` says what becomes of a new one: an error, or nothing ever."""

    world: World
    ask: Callable[[Request], None]
    far: float
    """Seconds that anything takes, one way."""
    down: Callable[[], str] = lambda: ""

    async def connect(self, *_: Any, **__: Any) -> socket.socket:
        """Stand in for ``aiohappyeyeballs.start_connection``."""
        await asyncio.sleep(self.far)
        match self.down():
            case "refuses":
                raise ConnectionRefusedError
            case "silent":
                await asyncio.sleep(NEVER)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        Connection(self.world, theirs, self._there)
        return ours

    def _there(self, request: Request) -> None:
        self.world.after(self.far, lambda: self.ask(request))
