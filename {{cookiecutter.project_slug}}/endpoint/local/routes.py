"""Tables of routes, each behind a check of its own; the way from a request to its route; what is in its query."""

import re
from collections.abc import Callable
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from endpoint.local.body import answer, encode
from endpoint.local.rate_limits import Endpoint, RateLimits


class Route(NamedTuple):
    """What answers ``method`` on ``path``, in which ``{name}`` stands for a segment."""

    method: str
    path: str
    endpoint: Endpoint


class Router:
    """Leads each request to its one of ``routes``, and answers with a sentence what that refuses.

    Starlette's own tries one route after another, in Python: every result of every job comes by here.
    """

    def __init__(self, routes: list[Route]) -> None:
        self.routes = routes
        self._paths = [*dict.fromkeys(route.path for route in routes)]
        self._endpoints = {(route.path, route.method): route.endpoint for route in routes}
        self._pattern = re.compile("|".join(f"({_pattern(path)})" for path in self._paths))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._find(scope)(Request(scope, receive, send))
        except HTTPException as error:
            response = answer(encode({"error": error.detail}), error.status_code)
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    def _find(self, scope: Scope) -> Endpoint:
        asked = scope["path"].rstrip("/") or "/"
        found = self._pattern.fullmatch(asked)
        if not found or not found.lastindex:
            raise HTTPException(404, "not found")
        path = self._paths[found.lastindex - 1]
        segments = zip(path.split("/"), asked.split("/"), strict=True)
        scope["path_params"] = {name[1:-1]: segment for name, segment in segments if name.startswith("{")}
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        if (path, method) not in self._endpoints:
            raise HTTPException(405, f"method not allowed: {scope['method']}")
        return self._endpoints[path, method]


def _pattern(path: str) -> str:
    return "/".join("[^/]+" if segment.startswith("{") else re.escape(segment) for segment in path.split("/"))


class Routes:
    """Collects routes under ``prefix``; ``check`` raises what it answers to a request that is not let in."""

    def __init__(self, prefix: str, check: Callable[[Request], None], limits: RateLimits | None = None) -> None:
        self.routes: list[Route] = []
        self._prefix = prefix
        self._check = check
        self._limits = limits

    def get(self, path: str) -> Callable[[Endpoint], None]:
        return self._add(path, ["GET"])

    def post(self, path: str) -> Callable[[Endpoint], None]:
        return self._add(path, ["POST"])

    def any(self, path: str) -> Callable[[Endpoint], None]:
        """Take GET and POST: the platform's documentation shows both for what tells a job's state."""
        return self._add(path, ["GET", "POST"])

    def put(self, path: str) -> Callable[[Endpoint], None]:
        return self._add(path, ["PUT"])

    def delete(self, path: str) -> Callable[[Endpoint], None]:
        return self._add(path, ["DELETE"])

    def _add(self, path: str, methods: list[str]) -> Callable[[Endpoint], None]:
        operation = path.split("/")[1]

        def add(endpoint: Endpoint) -> None:
            act = self._limits.around(operation, endpoint) if self._limits else endpoint

            async def checked(request: Request) -> Response:
                self._check(request)
                return await act(request)

            self.routes.extend(Route(method, self._prefix + path, checked) for method in methods)

        return add


def number(request: Request, name: str, default: int, least: int, most: int) -> int:
    """Return the number ``name`` of the query; answer 400 to one that is not from ``least`` to ``most``."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isdecimal() and len(text) < 16 and least <= int(text) <= most):
        raise HTTPException(400, f"bad request: {name}: must be a number from {least} to {most}")
    return int(text)
