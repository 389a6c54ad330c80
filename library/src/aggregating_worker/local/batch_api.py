"""Batch Jobs, for callers, under ``/v2/local/batch`` (Runpod docs, serverless/advanced-workflows/batch-jobs)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from aggregating_worker.local.batch import Batch, BatchQueue
from aggregating_worker.local.body import Body, answer, encode, read, read_any
from aggregating_worker.local.client_api import MAX_BODY, checked
from aggregating_worker.local.job import Job, join
from aggregating_worker.local.queue import Full
from aggregating_worker.local.routes import Routes, number


def batch_api(api: Routes, batches: BatchQueue) -> None:
    """Add the routes for batches to ``api``."""

    def find(request: Request) -> Batch:
        if (batch := batches.find(request.path_params["batch"])) is None:
            raise HTTPException(404, "batch not found")
        return batch

    def draft(request: Request) -> Batch:
        batch = find(request)
        if batch.status != "DRAFT":
            raise HTTPException(400, f"batch is {batch.status}: only a DRAFT can be changed")
        return batch

    def shown(batch: Batch) -> Response:
        return answer(encode(batches.state(batch)))

    @api.post("/batch")
    async def create(request: Request) -> Response:
        """Create a batch, with the requests in the body: an array, which may be empty."""
        content, _ = await read_any(request, MAX_BODY["batch"])
        with refusals():
            return shown(batches.create(_jobs(content)))

    @api.get("/batch")
    async def list_batches(_: Request) -> Response:
        """List all batches, newest first."""
        return answer(encode(batches.states()))

    @api.post("/batch/{batch}/requests")
    async def add(request: Request) -> Response:
        """Add requests to a draft."""
        draft(request)
        body = await read(request, MAX_BODY["batch"])
        batch = draft(request)  # it may have been finalized while the body was on its way
        with refusals():
            batches.add(batch, _jobs(body.content.get("requests")))
        return shown(batch)

    @api.post("/batch/{batch}/finalize")
    async def finalize(request: Request) -> Response:
        """Lock a draft, and queue its requests."""
        batch = draft(request)
        with refusals():
            batches.finalize(batch)
        return shown(batch)

    @api.get("/batch/{batch}")
    async def state(request: Request) -> Response:
        """Return a batch's state, with the number of requests that have ended."""
        return shown(find(request))

    @api.put("/batch/{batch}")
    async def rename(request: Request) -> Response:
        """Name a batch."""
        batch = find(request)
        name = (await read(request, MAX_BODY["batch"])).content.get("name", batch.name)
        if not isinstance(name, str | None):
            raise HTTPException(400, "bad request: body: name must be a string")
        batch.name = name
        return shown(batch)

    @api.get("/batch/{batch}/requests")
    async def results(request: Request) -> Response:
        """List requests and their results, in the order of their ids, which are random."""
        batch = find(request)
        offset = number(request, "offset", 0, 0, 1_000_000)
        limit = number(request, "limit", 50, 1, 1_000)
        total = len(batch.requests)
        page = [batch.requests[request_id].listed() for request_id in sorted(batch.requests)[offset : offset + limit]]
        more = {"total": total, "offset": offset, "limit": limit, "hasMore": offset + limit < total}
        return answer(join(more, b'"requests":[%s]' % b",".join(page)))

    @api.delete("/batch/{batch}/requests/{request}")
    async def remove(request: Request) -> Response:
        """Remove a request from a draft."""
        batch = draft(request)
        if batch.requests.pop(request.path_params["request"], None) is None:
            raise HTTPException(404, "request not found")
        return shown(batch)

    @api.post("/batch/{batch}/cancel")
    async def cancel(request: Request) -> Response:
        """Drop a batch's waiting requests. A batch that has ended stays as it is."""
        batch = find(request)
        if not batch.ended:
            batches.cancel(batch)
        return shown(batch)


@contextmanager
def refusals() -> Iterator[None]:
    """Answer 429 to requests for which there is no room now, and 400 to those for which there never is."""
    try:
        yield
    except Full as full:
        raise HTTPException(429, f"too many requests: {full}") from None
    except ValueError as error:
        raise HTTPException(400, f"bad request: {error}") from None


def _jobs(requests: Any) -> list[Job]:
    if not isinstance(requests, list) or not all(isinstance(request, dict) for request in requests):
        raise HTTPException(400, "bad request: body: requests must be an array of objects as for /run")
    return [Job.of("batch", checked(Body(request, encode(request)))) for request in requests]
