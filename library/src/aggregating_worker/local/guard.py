"""Decides who may call: with the key, by this machine's own name, and not from another site's page."""

import re
from collections.abc import Callable
from secrets import compare_digest

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from aggregating_worker.local.body import answer, encode

LOCAL = r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?"
ORIGIN = rf"http://{LOCAL}"


class Guard:
    """Answers 403 to a browser that uses another name (DNS rebinding) or comes from a page of another site.

    ``host`` is the name by which workers call this machine. Pages served by this machine may call (CORS).
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._from_a_page = CORSMiddleware(
            app,
            allow_origin_regex=ORIGIN,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
        )
        self._host = re.compile(rf"{LOCAL}|{re.escape(host)}(:\d+)?".encode())
        self._origin = re.compile(ORIGIN.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            hosts = [value for name, value in scope["headers"] if name == b"host"]
            origins = [value for name, value in scope["headers"] if name == b"origin"]
            if len(hosts) != 1 or not self._host.fullmatch(hosts[0]) or not all(map(self._origin.fullmatch, origins)):
                why = "forbidden: call this endpoint as http://127.0.0.1 or http://localhost, with its port"
                await answer(encode({"error": why}), 403)(scope, receive, send)
                return
            await (self._from_a_page if origins else self._app)(scope, receive, send)


def key_check(api_key: str | None) -> Callable[[Request], None]:
    """Return a function that answers 401 to a request without the key ``api_key``, or without any if that is None.

    The key comes as it is or after ``Bearer``: the platform's documentation shows both.
    """
    right = api_key.encode() if api_key else None

    def check_key(request: Request) -> None:
        given = request.headers.get("authorization", "")
        scheme, _, rest = given.partition(" ")
        key = rest.strip() if scheme.lower() == "bearer" else given
        if not key or " " in key or (right and not compare_digest(key.encode(), right)):
            raise HTTPException(401, "unauthorized: send 'Authorization: Bearer <your API key>'")

    return check_key
