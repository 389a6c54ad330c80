"""A table of routes, each behind a check of its own, and what stands in their queries."""

from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from endpoint.local.rate_limits import Endpoint, RateLimits


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

            self.routes.append(Route(self._prefix + path, checked, methods=methods))

        return add


def number(request: Request, name: str, default: int, least: int, most: int) -> int:
    """Return the number ``name`` of the query; answer 400 to one that is not from ``least`` to ``most``."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isdecimal() and len(text) < 16 and least <= int(text) <= most):
        raise HTTPException(400, f"bad request: {name}: must be a number from {least} to {most}")
    return int(text)
