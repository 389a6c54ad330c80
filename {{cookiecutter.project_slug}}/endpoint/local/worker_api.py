"""What the SDK sees: the worker protocol, as runpod 1.12.0 speaks it.

Its side of it is in ``serverless/modules``: ``rp_job.py``, ``rp_http.py`` and ``rp_ping.py``.
"""

from typing import Any

from fastapi import APIRouter, HTTPException, Query, Request, Response

from endpoint.local.body import Answer, read_object
from endpoint.local.client_api import MAX_BODY
from endpoint.local.queue import Job, Queue
from endpoint.local.workers import Workers

MAX_CHUNK = 1_000_000
"""Bytes of one streamed chunk (Runpod docs, serverless/endpoints/operation-reference)."""
ENVELOPE = len('{"output": }')
"""Bytes that the SDK puts around a chunk; the limit is the chunk's."""
POLL_SECONDS = 5.0
"""How long a poll without news is held open. The SDK gives up after 90 s, and exits only between polls."""


def worker_api(queue: Queue, workers: Workers) -> APIRouter:
    """Return the routes for workers."""
    api = APIRouter(tags=["workers"])

    def held(worker: str, job_id: str) -> Job:
        job = queue.jobs.get(job_id)
        if job is None or job.worker != worker or job.status != "IN_PROGRESS":
            raise HTTPException(404, "job not found")
        return job

    async def take(request: Request, worker: str, most: int) -> list[dict[str, Any]]:
        workers.seen(worker)
        return [job.handout() for job in await queue.take(worker, most, POLL_SECONDS, request.is_disconnected)]

    @api.get("/job-take/{worker}")
    async def job_take(request: Request, worker: str) -> Response:
        """Hand out a job: a JSON object, or 204 if there is none."""
        jobs = await take(request, worker, 1)
        return Answer(jobs[0]) if jobs else Response(status_code=204)

    @api.get("/job-take-batch/{worker}")
    async def job_take_batch(request: Request, worker: str, batch_size: int = Query(ge=1)) -> Response:
        """Hand out up to ``batch_size`` jobs: a JSON list, or 204 if there is none."""
        jobs = await take(request, worker, batch_size)
        return Answer(jobs) if jobs else Response(status_code=204)

    @api.get("/job-stop/{worker}")
    async def job_stop(worker: str) -> Response:
        """Name the jobs that the worker should stop; 204 if there is none."""
        stops = await queue.stops(worker, POLL_SECONDS)
        return Answer({"jobsToStop": stops}) if stops else Response(status_code=204)

    @api.post("/job-stream/{worker}/{job_id}")
    async def job_stream(request: Request, worker: str, job_id: str) -> Response:
        """Take one chunk."""
        job = held(worker, job_id)
        body = await read_object(request, MAX_CHUNK + ENVELOPE)
        queue.stream(job, body.get("output"))
        return Response()

    @api.post("/job-done/{worker}/{job_id}")
    async def job_done(request: Request, worker: str, job_id: str) -> Response:
        """Take the job's final output, its error, or a progress update."""
        job = held(worker, job_id)
        queue.done(job, await read_object(request, MAX_BODY[job.operation]))
        return Response()

    @api.get("/ping/{worker}")
    async def ping(worker: str) -> Response:
        """Note that the worker is alive: from its process, here, we know it already."""
        del worker
        return Response()

    return api
