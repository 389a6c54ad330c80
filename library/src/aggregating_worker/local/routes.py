"""Tables of routes, each behind a check of its own; the way from a request to its route; what is in its query."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aggregating_worker.local.body import answer, encode
from aggregating_worker.local.rate_limits import Endpoint, RateLimits


class Route(NamedTuple):
    """What answers ``method`` on ``path``, in which ``{name}`` stands for a segment."""

    method: str
    path: str
    endpoint: Endpoint


@dataclass
class Place:
    """A place in the tree of paths: what may follow, and what answers here, by method."""

    named: "dict[str, Place]" = field(default_factory=dict)
    variable: "tuple[str, Place] | None" = None
    """What any other segment leads to, and its name."""
    endpoints: dict[str, Endpoint] = field(default_factory=dict)

    def at(self, segment: str) -> "Place":
        """Return what follows at ``segment`` of a route's path, made if it is new."""
        if not segment.startswith("{"):
            return self.named.setdefault(segment, Place())
        if self.variable is None:
            self.variable = (segment[1:-1], Place())
        return self.variable[1]


class Router:
    """Leads each request to its one of ``routes``, and answers with a sentence what that refuses.

    Starlette's own tries one route after another, in Python: every result of every job comes by here.
    """

    def __init__(self, routes: list[Route]) -> None:
        self.routes = routes
        self._root = Place()
        for route in routes:
            place = reduce(Place.at, route.path.split("/"), self._root)
            place.endpoints[route.method] = route.endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._find(scope)(Request(scope, receive, send))
        except HTTPException as error:
            response = answer(encode({"error": error.detail}), error.status_code)
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    def _find(self, scope: Scope) -> Endpoint:
        place, variables = self._root, {}
        for segment in (scope["path"].rstrip("/") or "/").split("/"):
            if segment in place.named:
                place = place.named[segment]
            elif segment and place.variable:
                name, place = place.variable
                variables[name] = segment
            else:
                raise HTTPException(404, "not found")
        if not place.endpoints:
            raise HTTPException(404, "not found")
        scope["path_params"] = variables
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        if method not in place.endpoints:
            raise HTTPException(405, f"method not allowed: {scope['method']}")
        return place.endpoints[method]


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
