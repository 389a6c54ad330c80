"""Tables of routes, each with its own check of who calls, and the router that finds a request's route."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import reduce
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aggregating_worker.local.body import answer, encode

Endpoint = Callable[[Request], Awaitable[Response]]


class Route(NamedTuple):
    """The function that answers ``method`` on ``path``, in which ``{name}`` stands for any segment.

    At its end, ``{name*}`` stands for one or more.
    """

    method: str
    path: str
    endpoint: Endpoint


@dataclass
class Place:
    """A place in the tree of paths: the segments that may follow, and the functions that answer here, by method."""

    named: "dict[str, Place]" = field(default_factory=dict)
    variable: "tuple[str, Place] | None" = None
    """The name for any other segment, and the place to which it leads."""
    rest: str | None = None
    """The name for all the segments that led here, of which there may be more."""
    endpoints: dict[str, Endpoint] = field(default_factory=dict)

    def at(self, segment: str) -> "Place":
        """Return the place to which ``segment`` of a route's path leads; it is made if it is new."""
        if not segment.startswith("{"):
            return self.named.setdefault(segment, Place())
        if self.variable is None:
            name = segment[1:-1].rstrip("*")
            self.variable = (name, Place(rest=name if segment.endswith("*}") else None))
        return self.variable[1]


class Router:
    """Gives each request to its route, and answers with a sentence if there is none or the route refuses it.

    Starlette's own router tries one route after another, in Python, which is slow: every result passes through here.
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
            elif segment and place.rest:
                variables[place.rest] += f"/{segment}"
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
    """Collects routes under ``prefix``; ``check`` raises an ``HTTPException`` for a request that may not call them."""

    def __init__(self, prefix: str, check: Callable[[Request], None]) -> None:
        self.routes: list[Route] = []
        self._prefix = prefix
        self._check = check

    def get(self, path: str) -> Callable[[Endpoint], None]:
        return self._add(path, ["GET"])

    def post(self, path: str) -> Callable[[Endpoint], None]:
        return self._add(path, ["POST"])

    def any(self, path: str) -> Callable[[Endpoint], None]:
        """Take GET and POST: the platform's documentation shows both for reading a job's state."""
        return self._add(path, ["GET", "POST"])

    def put(self, path: str) -> Callable[[Endpoint], None]:
        return self._add(path, ["PUT"])

    def delete(self, path: str) -> Callable[[Endpoint], None]:
        return self._add(path, ["DELETE"])

    def _add(self, path: str, methods: list[str]) -> Callable[[Endpoint], None]:
        def add(endpoint: Endpoint) -> None:
            async def checked(request: Request) -> Response:
                self._check(request)
                return await endpoint(request)

            self.routes.extend(Route(method, self._prefix + path, checked) for method in methods)

        return add


def number(request: Request, name: str, default: int, least: int, most: int) -> int:
    """Return the number ``name`` in the query; answer 400 if it is not from ``least`` to ``most``."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isdecimal() and len(text) < 16 and least <= int(text) <= most):
        raise HTTPException(400, f"bad request: {name}: must be a number from {least} to {most}")
    return int(text)
