"""HTTP as uvicorn speaks it, but for a limit to a request's head, which it has none of with httptools (0.54)."""

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from aggregating_worker.local.body import answer, encode

HEAD = 64 * 1024
"""Bytes of a request's line and headers, at most; asyncio hands on up to four times as many at once."""


def refusal(status: int, why: str) -> ASGIApp:
    """Return an application that refuses any request, and hangs up."""

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        response = answer(encode({"error": why}), status)
        response.headers["connection"] = "close"
        await response(scope, receive, send)

    return refuse


TOO_LARGE = refusal(431, f"the request's headers are over {HEAD >> 10} KiB")
NO_WEBSOCKET = refusal(400, "there is no WebSocket here: send a plain request")


class Protocol(HttpToolsProtocol):
    """Refuses a request with too large a head before it is kept, and a WebSocket before it is made one."""

    _open = False
    """Whether a head has begun and not ended."""
    _size = 0
    """Bytes of it that came after the first lot and before the last."""
    _lot = 0
    """Bytes that came last, which may be of a body, too."""
    _tail = b""
    """The last of these, in which the end of the head may have begun."""
    _trailing = 0
    """Bytes that came since the last of a body: more than a few are trailers, which nobody reads."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        self._lot = len(data)
        if self._open and b"\r\n\r\n" not in self._tail + data:
            self._size += len(data)
            if self._size > HEAD:
                self.transport.write(b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\r\n")
                self.transport.close()
                return
        self._trailing += len(data)
        super().data_received(data)
        if self._trailing > HEAD and not self._open:
            self.transport.close()
        if self._open:
            self._tail = data[-3:]
            self._wait()

    def _wait(self) -> None:
        """Hang up if no more comes, as on an idle connection: uvicorn would wait for a head for ever."""
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._open, self._size = True, 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._open:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._trailing = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._trailing = 0
        super().on_message_complete()

    def on_headers_complete(self) -> None:
        self._open, self._trailing = False, 0
        if self.parser.should_upgrade() and self._get_upgrade() == b"websocket":
            self.app = NO_WEBSOCKET
        if self._lot > HEAD and len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD:
            self.app = TOO_LARGE
        super().on_headers_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: the request has been answered as if it had not asked for that."""
