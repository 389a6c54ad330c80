"""What callers see: Runpod's job API (docs, serverless/endpoints/operation-reference), under ``/v2/local``."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

import httpx
from fastapi import APIRouter, Depends, HTTPException, Query, Request

from endpoint.local.body import check_depth, read_object
from endpoint.local.queue import Job, Queue
from endpoint.local.workers import Workers

MAX_BODY = {"run": 10_000_000, "runsync": 20_000_000}
"""Bytes of a request, and of its result, by operation."""
WEBHOOK_TRIES = 3
WEBHOOK_PAUSE = 10.0
STREAM_WAIT = 5_000
"""Milliseconds that an empty stream is held. The platform holds it for 10 s, at which the SDK's own client gives up."""

Wait = Annotated[int, Query(ge=1_000, le=300_000, description="Milliseconds to wait for news")]


def key_check(api_key: str | None) -> Callable[[Request], None]:
    """Return what answers 401 to a request without a key: ``api_key``, or any if that is None."""

    def check_key(request: Request) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip() or (api_key and key.strip() != api_key):
            raise HTTPException(401, "unauthorized: send 'Authorization: Bearer <your API key>'")

    return check_key


def count(queue: Queue, workers: Workers) -> dict[str, Any]:
    """Count jobs and workers by state, as ``/health`` answers."""
    states = [job.status for job in queue.jobs.values()]
    jobs = {
        "completed": queue.counts["COMPLETED"],
        "failed": queue.counts["FAILED"] + queue.counts["TIMED_OUT"],
        "inProgress": states.count("IN_PROGRESS"),
        "inQueue": states.count("IN_QUEUE"),
        "retried": queue.counts["retried"],
    }
    return {"jobs": jobs, "workers": workers.states()}


def client_api(queue: Queue, workers: Workers, api_key: str | None) -> APIRouter:
    """Return the routes for callers. ``api_key`` is the only key that is let in; None lets in any."""

    def find(job_id: str) -> Job:
        if (job := queue.jobs.get(job_id)) is None:
            raise HTTPException(404, "job not found")
        return job

    api = APIRouter(dependencies=[Depends(key_check(api_key))], tags=["callers"])
    known = Annotated[Job, Depends(find)]

    async def submit(operation: str, request: Request) -> Job:
        return queue.submit(operation, _checked(await read_object(request, MAX_BODY[operation])))

    @api.post("/run")
    async def run(request: Request) -> dict[str, Any]:
        """Queue a job and return its id."""
        job = await submit("run", request)
        return {"id": job.id, "status": "IN_QUEUE"}

    @api.post("/runsync")
    async def runsync(request: Request, wait: Wait = 90_000) -> dict[str, Any]:
        """Queue a job and return its result, or its state once ``wait`` has passed."""
        job = await submit("runsync", request)
        await job.changed.wait(lambda: job.final, wait / 1000)
        return job.state()

    @api.api_route("/status/{job_id}", methods=["GET", "POST"])
    async def status(job: known) -> dict[str, Any]:
        """Return a job's state, and its output once it has ended."""
        return job.state()

    @api.api_route("/stream/{job_id}", methods=["GET", "POST"])
    async def stream(job: known, wait: Wait = STREAM_WAIT) -> dict[str, Any]:
        """Return the chunks that have arrived since the last call, waiting for one; each is returned once."""
        await job.changed.wait(lambda: bool(job.chunks) or job.final, wait / 1000)
        chunks = [{"output": job.chunks.popleft()} for _ in range(len(job.chunks))]
        return {"id": job.id, "status": job.status, "stream": chunks}

    @api.post("/cancel/{job_id}")
    async def cancel(job: known) -> dict[str, Any]:
        """Stop a job wherever it is. One that has ended stays as it is."""
        queue.cancel(job)
        return {"id": job.id, "status": job.status}

    @api.post("/retry/{job_id}")
    async def retry(job: known) -> dict[str, Any]:
        """Queue a job again that failed or timed out."""
        if job.status not in ("FAILED", "TIMED_OUT"):
            raise HTTPException(400, f"job is {job.status}: only a FAILED or TIMED_OUT job can be retried")
        queue.retry(job)
        return {"id": job.id, "status": "IN_QUEUE"}

    @api.post("/purge-queue")
    async def purge_queue() -> dict[str, Any]:
        """Drop every job that no worker has taken."""
        return {"removed": queue.purge(), "status": "completed"}

    @api.get("/health")
    async def health() -> dict[str, Any]:
        """Count jobs and workers by state."""
        return count(queue, workers)

    webhooks: set[asyncio.Task[None]] = set()

    def call_webhook(job: Job) -> None:
        if url := job.request.get("webhook"):
            webhooks.add(task := asyncio.create_task(_post(url, job.state())))
            task.add_done_callback(webhooks.discard)

    queue.on_final = call_webhook
    return api


def _checked(body: dict[str, Any]) -> dict[str, Any]:
    """Return ``body`` if a worker can be given it; answer 400 otherwise."""
    if body.get("input") is None:
        raise HTTPException(400, "bad request: body: input is missing")
    if not isinstance(body.get("webhook", ""), str):
        raise HTTPException(400, "bad request: body: webhook must be a URL")
    check_depth(body)
    policy = body.get("policy", {})
    if not isinstance(policy, dict):
        raise HTTPException(400, "bad request: body: policy must be an object")
    for name, least in (("executionTimeout", 5_000), ("ttl", 10_000)):
        limit = policy.get(name, least)
        if not isinstance(limit, int | float) or not least <= limit <= 604_800_000:
            raise HTTPException(400, f"bad request: body: policy.{name} must be from {least} to 604800000 ms")
    return {key: value for key, value in body.items() if key != "id"}


async def _post(url: str, state: dict[str, Any]) -> None:
    """Tell a webhook; try again as the platform does (docs, serverless/endpoints/send-requests) unless it says 200."""
    async with httpx.AsyncClient() as client:
        for left in reversed(range(WEBHOOK_TRIES)):
            try:
                if (await client.post(url, json=state)).status_code == 200:
                    return
            except Exception:  # noqa: S110  # whatever the address leads to, there is nobody here to tell
                pass
            if left:
                await asyncio.sleep(WEBHOOK_PAUSE)
