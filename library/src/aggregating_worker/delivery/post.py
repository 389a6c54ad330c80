"""POSTs over HTTP/1.1 and nothing else, with asyncio for the connections and httptools to read the answers.

Each result is a POST, which is most of the cost of a small one. aiohttp (3.14), the SDK's client, takes three times as
long, and only the status of the answer is needed here.
"""

import asyncio
import select
import socket
import ssl
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple, cast

import httptools
from aiohappyeyeballs import start_connection
from yarl import URL

RESTED = 15.0
"""Seconds without use after which a connection is closed: the server may be about to close it."""
STAGGER = 0.25
"""Seconds after which the host's next address is tried as well (RFC 8305)."""
PIECE = 65_536
"""Bytes of a body that are written at once."""
MOST = 1_000_000
"""Bytes of an answer that are read at most; only its status is needed."""
CLOSED = "closed without an answer"


class Answer(NamedTuple):
    """The server's answer: the status, and ``Retry-After``, which may be empty."""

    status: int
    retry_after: str


class Poster:
    """Posts through connections that are kept for later POSTs; each carries one POST at a time."""

    def __init__(self) -> None:
        self._resting: defaultdict[URL, list[_Connection]] = defaultdict(list)

    async def post(
        self, server: URL, path: str, headers: Mapping[str, str], body: Sequence[bytes], seconds: float
    ) -> Answer:
        """Post ``body``, in pieces, to ``path`` of ``server``; return the answer of any status, and follow no redirect.

        There must be no line break in ``path`` or ``headers``. Raises ``OSError`` if there is no connection within
        ``seconds``, or no HTTP answer within as many more.
        """
        fields = {"Host": server.host_port_subcomponent, "Content-Length": sum(map(len, body)), **headers}
        head = f"POST {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "\r\n"
        resting = self._resting[server]
        connection = _fresh(resting) or await _connect(server, seconds)
        try:
            return await connection.post(head.encode(), body, seconds)
        finally:
            if connection.reusable:
                resting.append(connection)
            else:
                connection.end()


class _Connection(asyncio.Protocol):
    """One connection; ``reusable`` says whether it can carry another POST."""

    _answer: asyncio.Future[Answer]

    def __init__(self) -> None:
        self.reusable = False
        self.used = 0.0
        """When the last answer came, in seconds of ``time.monotonic``."""
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        self._answer = asyncio.get_running_loop().create_future()
        self._answer.cancel()  # no answer is expected yet
        self._status = 0
        self._read = 0
        """Bytes of the answer that have come."""
        self._retry_after = ""
        self._unsent: Iterator[bytes | memoryview] | None = None
        self._full = False

    @property
    def unread(self) -> bool:
        """Whether something has come, such as its end, that the event loop has not read: the worker was frozen."""
        looking = select.poll()
        looking.register(self._transport.get_extra_info("socket"), select.POLLIN)
        return bool(looking.poll(0))

    async def post(self, head: bytes, body: Sequence[bytes], seconds: float) -> Answer:
        if self._transport.is_closing():
            raise ConnectionResetError(CLOSED)
        loop = asyncio.get_running_loop()
        self._answer, self._status, self._read, self.reusable = loop.create_future(), 0, 0, False
        alarm = loop.call_later(seconds, self._cut, TimeoutError())
        self._unsent = _pieces([head, *body])
        self._send()
        try:
            return await self._answer
        finally:
            alarm.cancel()
            self._unsent = None  # it would keep the body in memory

    def _send(self) -> None:
        """Write as much of the body as the transport has room for: it would copy whatever is more."""
        while self._unsent and not (self._full or self._answer.done()):
            if piece := next(self._unsent, b""):
                self._transport.write(piece)
            else:
                self._unsent = None

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._send()

    def end(self) -> None:
        self.reusable = False
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._answer.done():  # unasked: it must not be taken for the next answer
            self.end()
            return
        self._read += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._cut(ConnectionError(f"no HTTP: {error}"))
        if self._read > MOST:
            self._cut(ConnectionError("more than an answer"))

    def eof_received(self) -> None:
        self.reusable = False

    def on_message_begin(self) -> None:
        self.reusable, self._retry_after = False, ""

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            self._retry_after = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_message_complete(self) -> None:
        if self._status >= 200:  # a lower status only announces an answer
            alone = not (self._answer.done() or self._unsent or self._transport.get_write_buffer_size())
            self.reusable, self.used = alone and self._parser.should_keep_alive(), time.monotonic()
            self._succeed()

    def connection_lost(self, error: Exception | None) -> None:
        self._cut(error or ConnectionResetError(CLOSED))

    def _cut(self, error: Exception) -> None:
        """Take what has come for the answer, if its status is there: the rest would not be looked at anyway."""
        self.reusable = False
        if self._status >= 200:
            self._succeed()
        elif not self._answer.done():
            self._answer.set_exception(error)

    def _succeed(self) -> None:
        if not self._answer.done():
            self._answer.set_result(Answer(self._status, self._retry_after))


def _pieces(body: Sequence[bytes]) -> Iterator[bytes | memoryview]:
    """Yield ``body`` in pieces of about ``PIECE`` bytes, without a copy of what is large."""
    small = bytearray()
    for part in body:
        if len(small) + len(part) <= PIECE:
            small += part
            continue
        if small:
            yield bytes(small)
        small.clear()
        yield from (memoryview(part)[begin : begin + PIECE] for begin in range(0, len(part), PIECE))
    if small:
        yield bytes(small)


def _fresh(resting: list[_Connection]) -> _Connection | None:
    while resting:
        connection = resting.pop()
        if connection.reusable and time.monotonic() - connection.used < RESTED and not connection.unread:
            return connection
        connection.end()
    return None


async def _connect(server: URL, seconds: float) -> _Connection:
    loop, host, encrypted = asyncio.get_running_loop(), server.raw_host or "", server.scheme == "https"
    async with asyncio.timeout(seconds):
        addresses = await loop.getaddrinfo(host, server.port, type=socket.SOCK_STREAM)
        connected = await start_connection(addresses, happy_eyeballs_delay=STAGGER)  # uvloop cannot do this
        _, connection = await loop.create_connection(
            _Connection,
            sock=connected,
            ssl=_context() if encrypted else None,
            server_hostname=host if encrypted else None,
        )
    return connection


@cache
def _context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
