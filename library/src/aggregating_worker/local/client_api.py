"""Runpod's job API, for callers, under ``/v2/local`` (docs, serverless/endpoints/operation-reference)."""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from aggregating_worker.local.body import Body, answer, check_depth, encode, read
from aggregating_worker.local.job import Job, join
from aggregating_worker.local.queue import Full, Queue
from aggregating_worker.local.routes import Routes, number
from aggregating_worker.local.webhooks import Webhooks
from aggregating_worker.local.workers import Workers

MAX_BODY = {"run": 10 * 2**20, "runsync": 20 * 2**20, "batch": 10 * 2**20}
"""Bytes of a request, and of its result, by operation."""
LONGEST = 604_800_000
"""The highest time limit of a job, in milliseconds: a week."""
STREAM_WAIT = 5_000
"""Milliseconds that ``/stream`` waits for a chunk. On the platform it is 10 s, when the SDK's own client gives up."""
SYNC_WAIT = 90_000


def count(queue: Queue, workers: Workers) -> dict[str, Any]:
    """Count jobs and workers by state, as ``/health`` answers."""
    jobs = {
        "completed": queue.counts["COMPLETED"],
        "failed": queue.counts["FAILED"] + queue.counts["TIMED_OUT"],
        "inProgress": len(queue.held),
        "inQueue": queue.waiting,
        "retried": queue.counts["retried"],
    }
    return {"jobs": jobs, "workers": workers.states()}


def client_api(api: Routes, queue: Queue, workers: Workers) -> None:
    """Add the routes for callers to ``api``."""

    def find(request: Request) -> Job:
        if (job := queue.jobs.get(request.path_params["job"])) is None:
            raise HTTPException(404, "job not found")
        return job

    async def submit(operation: str, request: Request) -> Job:
        try:
            return queue.submit(Job.of(operation, checked(await read(request, MAX_BODY[operation]))))
        except Full as full:
            raise HTTPException(429, f"too many requests: {full}") from None

    async def ended(job: Job, request: Request) -> Response:
        wait = number(request, "wait", SYNC_WAIT, 1_000, 300_000)
        await job.changed.wait(lambda: job.final, wait / 1000)
        return answer(job.state())

    @api.post("/runsync")
    async def runsync(request: Request) -> Response:
        """Queue a job and return its result, or its state once ``wait`` milliseconds have passed."""
        number(request, "wait", SYNC_WAIT, 1_000, 300_000)
        return await ended(await submit("runsync", request), request)

    @api.post("/run")
    async def run(request: Request) -> Response:
        """Queue a job and return its id."""
        job = await submit("run", request)
        return answer(encode({"id": job.id, "status": "IN_QUEUE"}))

    @api.any("/status/{job}")
    async def status(request: Request) -> Response:
        """Return a job's state, and its output once it has ended; it is kept for ``ttl`` more milliseconds."""
        job = find(request)
        if ttl := number(request, "ttl", 0, 1, LONGEST):
            queue.expire(job, ttl / 1000)
        return answer(job.state())

    @api.any("/status-sync/{job}")
    async def status_sync(request: Request) -> Response:
        """Return a job's result, or its state once ``wait`` milliseconds have passed."""
        return await ended(find(request), request)

    @api.any("/stream/{job}")
    async def stream(request: Request) -> Response:
        """Return the chunks that have arrived since the last call, or wait for one; each is returned once."""
        job = find(request)
        wait = number(request, "wait", STREAM_WAIT, 1_000, 300_000)
        await job.changed.wait(lambda: bool(job.chunks) or job.final, wait / 1000)
        chunks = b'"stream":[%s]' % b",".join(queue.drain(job))
        return answer(join({"id": job.id, "status": job.status}, chunks))

    @api.post("/cancel/{job}")
    async def cancel(request: Request) -> Response:
        """Cancel a job that waits or runs. One that has ended stays as it is."""
        job = find(request)
        queue.cancel(job)
        return answer(encode({"id": job.id, "status": job.status}))

    @api.post("/retry/{job}")
    async def retry(request: Request) -> Response:
        """Queue a job again if it failed or timed out."""
        job = find(request)
        if job.status not in ("FAILED", "TIMED_OUT"):
            raise HTTPException(400, f"job is {job.status}: only a FAILED or TIMED_OUT job can be retried")
        queue.retry(job)
        return answer(encode({"id": job.id, "status": "IN_QUEUE"}))

    @api.post("/purge-queue")
    async def purge_queue(_: Request) -> Response:
        """Drop every job that no worker has taken."""
        return answer(encode({"removed": queue.purge(), "status": "completed"}))

    @api.get("/health")
    async def health(_: Request) -> Response:
        """Count jobs and workers by state."""
        return answer(encode(count(queue, workers)))

    @api.get("/requests")
    async def requests(_: Request) -> Response:
        """List the jobs that are kept, newest first, without what they were given and what came of it."""
        return answer(encode({"requests": [job.facts() for job in reversed(queue.jobs.values())]}))

    queue.on_final = Webhooks(workers.say).call


def checked(body: Body) -> Body:
    """Return ``body`` if it is a valid request for a job; answer 400 otherwise."""
    content = body.content
    if content.get("input") is None:
        raise HTTPException(400, "bad request: body: input is missing or null")
    if not isinstance(content.get("webhook", ""), str | None):
        raise HTTPException(400, "bad request: body: webhook must be a URL")
    check_depth(body)
    policy = content.get("policy") or {}
    if not isinstance(policy, dict):
        raise HTTPException(400, "bad request: body: policy must be an object")
    for name, least in (("executionTimeout", 5_000), ("ttl", 10_000)):
        limit = policy.get(name, least)
        if not isinstance(limit, int | float) or not least <= limit <= LONGEST:
            raise HTTPException(400, f"bad request: body: policy.{name} must be from {least} to {LONGEST} ms")
    return body
