"""The platform's Batch Jobs: many requests under one id, which run when there is room for them.

Runpod docs, serverless/advanced-workflows/batch-jobs. A batch is a ``DRAFT`` while requests are added, then
``FINALIZED``. It ends when all of its requests have ended, or as ``FAILED`` or ``CANCELLED``.
"""

from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote

from aggregating_worker.client.api import Api
from aggregating_worker.client.http import AnswerTooLarge, CallFailed
from aggregating_worker.client.job import is_id

MAX_REQUESTS = 5_000
"""Requests in a batch."""
MAX_BATCHES = 10
"""Batches that an endpoint may have at once."""
MAX_BODY = 10 * 2**20
"""Bytes in a call that adds requests."""
PAGE = 50
"""Requests in one answer; fewer are asked for if their results are too large for one."""


@dataclass(frozen=True)
class BatchState:
    """The state of a batch; the numbers count its requests."""

    id: str
    status: str
    total: int
    running: int
    completed: int
    failed: int

    @classmethod
    def of(cls, answer: Any) -> Self:
        """Return the state in an answer. Raises ``CallFailed``."""
        counts = ("requestTotal", "requestInProgress", "requestCompleted", "requestFailed")
        match answer:
            case {"id": batch_id, "status": str(status)} if is_id(batch_id) and all(
                isinstance(answer.get(name, 0), int) for name in counts
            ):
                return cls(batch_id, status, *(answer.get(name, 0) for name in counts))
        raise CallFailed("The endpoint's answer is not a batch: does it have Batch Jobs?")

    @property
    def done(self) -> int:
        """How many requests have ended."""
        return self.completed + self.failed

    @property
    def ended(self) -> bool:
        """Whether no more results will come."""
        return self.status in ("FAILED", "CANCELLED") or (self.status == "FINALIZED" and self.done >= self.total)


class Batches:
    """The batches of an endpoint. Every call may raise ``CallFailed``; its status is 404 if there is no such batch."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def create(self) -> str:
        """Make a ``DRAFT`` without requests; return its id."""
        return BatchState.of(await self._api.call("POST", "/batch", b"[]")).id

    async def add(self, batch_id: str, requests: Iterable[bytes]) -> None:
        """Add requests, which are JSON, to a ``DRAFT``; some twice, if an answer is lost and the call made again."""
        for together in _together(requests):
            await self._api.tell("POST", _path(batch_id, "/requests"), HEAD + b",".join(together) + TAIL)

    async def finalize(self, batch_id: str) -> None:
        """Have the requests of a ``DRAFT`` run."""
        try:
            await self._api.tell("POST", _path(batch_id, "/finalize"))
        except CallFailed:
            if (await self.state(batch_id)).status != "FINALIZED":  # it is, if only the answer was lost
                raise

    async def cancel(self, batch_id: str) -> None:
        """Cancel the requests that wait; those that run are finished."""
        await self._api.tell("POST", _path(batch_id, "/cancel"))

    async def state(self, batch_id: str) -> BatchState:
        """Return how far a batch is."""
        return BatchState.of(await self._api.call("GET", _path(batch_id)))

    async def requests(self, batch_id: str) -> AsyncGenerator[dict[str, Any], None]:
        """Yield a batch's requests with their results, in no order; while the batch runs, some may be missing."""
        offset, limit, more = 0, PAGE, True
        while more:
            try:
                answer = await self._api.call("GET", _path(batch_id, f"/requests?offset={offset}&limit={limit}"))
            except AnswerTooLarge:
                if limit == 1:
                    raise
                limit = max(1, limit // 4)
                continue
            page = answer.get("requests")
            if not isinstance(page, list) or not all(isinstance(each, dict) for each in page):
                raise CallFailed("The endpoint's answer is not a list of requests: does it have Batch Jobs?")
            for request in page:
                yield request
            offset += len(page)
            more = bool(answer.get("hasMore")) and bool(page)


HEAD, TAIL = b'{"requests": [', b"]}"


def _together(requests: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield ``requests`` in lists that each fit into a call."""
    together, size = list[bytes](), len(HEAD + TAIL)
    for request in requests:
        if together and size + len(request) + 1 > MAX_BODY:
            yield together
            together, size = [], len(HEAD + TAIL)
        together.append(request)
        size += len(request) + 1
    if together:
        yield together


def _path(batch_id: str, rest: str = "") -> str:
    return f"/batch/{quote(batch_id, safe='')}{rest}"
