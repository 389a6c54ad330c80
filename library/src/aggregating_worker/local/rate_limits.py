"""The platform's rate limits, for whoever wants to see callers meet them (docs, serverless/endpoints/send-requests)."""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

Endpoint = Callable[[Request], Awaitable[Response]]

SECONDS = 10.0
LIMITS = {
    "runsync": (2_000, 400),
    "run": (1_000, 200),
    "status": (2_000, 400),
    "stream": (2_000, 400),
    "cancel": (100, 20),
    "purge-queue": (2, 2),
}
"""Requests in ``SECONDS``, and at once, by operation. What is not in the platform's table has no limit."""


class RateLimits:
    """Counts requests by operation."""

    def __init__(self) -> None:
        self._recent: defaultdict[str, deque[float]] = defaultdict(deque)
        self._running: Counter[str] = Counter()

    def around(self, operation: str, endpoint: Endpoint) -> Endpoint:
        """Return ``endpoint`` with the limits of ``operation``: it answers 429 to a request that is one too many."""
        if operation not in LIMITS:
            return endpoint
        often, at_once = LIMITS[operation]
        recent = self._recent[operation]

        async def limited(request: Request) -> Response:
            now = time.monotonic()
            while recent and recent[0] <= now - SECONDS:
                recent.popleft()
            if len(recent) >= often or self._running[operation] >= at_once:
                raise HTTPException(429, f"too many requests: /{operation} takes {often} in 10 s, {at_once} at once")
            recent.append(now)
            self._running[operation] += 1
            try:
                return await endpoint(request)
            finally:
                self._running[operation] -= 1

        return limited
