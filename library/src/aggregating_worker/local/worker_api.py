"""The worker protocol, for the SDK, as runpod 1.12.0 speaks it.

The SDK's side is in its ``serverless/modules``: ``rp_job.py``, ``rp_http.py`` and ``rp_ping.py``.
"""

from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from aggregating_worker.local.body import Body, answer, encode, members, read
from aggregating_worker.local.client_api import MAX_BODY
from aggregating_worker.local.job import Job
from aggregating_worker.local.routes import Routes, number
from aggregating_worker.local.workers import WorkerProcess

MAX_CHUNK = 1_000_000
"""Bytes of one streamed chunk (Runpod docs, serverless/endpoints/operation-reference)."""
ENVELOPE = len('{"output": }')
"""Bytes that the SDK puts around a chunk; they do not count towards the limit."""
PIECE = MAX_CHUNK // 12
"""Characters of a text that surely fit into a chunk: as JSON, one takes at most 12 bytes (two escapes)."""
POLL_SECONDS = 5.0
"""How long a poll waits for a job. The SDK gives up after 90 s, and can exit only between two polls."""


def worker_api(api: Routes, find: Callable[[str], WorkerProcess | None]) -> None:
    """Add the routes for workers to ``api``; ``find`` returns a worker by its id."""

    def asking(request: Request) -> WorkerProcess:
        worker = find(request.path_params["worker"])
        if worker and (
            worker.is_known_by(request.headers.get("authorization", ""))
            or worker.is_known_by(request.query_params.get("secret", ""))
        ):
            return worker
        raise HTTPException(401, "unauthorized: this is for the endpoint's own workers")

    async def posted(request: Request, *also: str) -> tuple[WorkerProcess, Job, Body]:
        """Return the worker, its job, and what it says about it; answer 404 if the job is no longer this worker's.

        It is this worker's while it is in progress, and in the states ``also``.
        """
        worker = asking(request)
        job = worker.queue.jobs.get(request.path_params["job"])
        since = None if job is None else job.taken

        def check() -> Job:
            if job is None or job.worker != worker.id or job.taken != since:
                raise HTTPException(404, "job not found")
            if job.status != "IN_PROGRESS" and job.status not in also:
                raise HTTPException(404, "job not found")
            return job

        body = await read(request, MAX_BODY[check().operation])
        return worker, check(), body  # again: it may have been cancelled while the body was on its way

    async def take(request: Request, most: int) -> list[bytes]:
        worker = asking(request)
        worker.seen()
        if request.query_params.get("job_in_progress") != "1":
            worker.queue.stops.heeded(worker.id)
        jobs = await worker.queue.take(worker.id, most, POLL_SECONDS, request.is_disconnected)
        return [job.handout() for job in jobs]

    @api.post("/job-stream/{worker}/{job}")
    async def job_stream(request: Request) -> Response:
        """Take one chunk; a text that is too long is split into several."""
        worker, job, body = await posted(request)
        output = body.content.get("output")
        if len(body.text) <= MAX_CHUNK + ENVELOPE:
            worker.queue.stream(job, b"{" + (members(body, {"output"}) or b'"output":null') + b"}")
        elif isinstance(output, str):
            for start in range(0, len(output), PIECE):
                worker.queue.stream(job, encode({"output": output[start : start + PIECE]}))
        else:
            worker.pool.say(f"A chunk of job {job.id} is refused: it has {len(body.text):,} bytes, and is no text.")
            raise HTTPException(400, "bad request: body: exceeded max body size of 1MB: yield less at once")
        return Response()

    @api.get("/job-take/{worker}")
    async def job_take(request: Request) -> Response:
        """Return a job as a JSON object, or 204 if there is none."""
        jobs = await take(request, 1)
        return answer(jobs[0]) if jobs else Response(status_code=204)

    @api.post("/job-done/{worker}/{job}")
    async def job_done(request: Request) -> Response:
        """Take the job's final output, its error, or a progress update.

        A progress update that is late puts an ended job back in progress, as the platform does (runpod-python#250).
        """
        worker, job, body = await posted(request, "COMPLETED", "FAILED")
        status = "FAILED" if "error" in body.content else "COMPLETED"
        if body.content.get("status") == "IN_PROGRESS":
            status = "IN_PROGRESS"
            if job.final:
                worker.pool.say(
                    f"A progress update of job {job.id} came after its end. It was {job.status}; now it is IN_PROGRESS "
                    "again, and its result is gone: on the platform, too, such a job never ends."
                )
        elif job.final:
            raise HTTPException(404, "job not found")
        worker.queue.done(job, members(body, {"output", "error"}), status)
        if body.content.get("stopPod"):
            worker.refresh()
        return Response()

    @api.get("/job-take-batch/{worker}")
    async def job_take_batch(request: Request) -> Response:
        """Return up to ``batch_size`` jobs as a JSON list, or 204 if there is none."""
        jobs = await take(request, number(request, "batch_size", 1, 1, 1_000_000))
        return answer(b"[%s]" % b",".join(jobs)) if jobs else Response(status_code=204)

    @api.get("/job-stop/{worker}")
    async def job_stop(request: Request) -> Response:
        """Return the ids of the jobs that the worker should stop, or 204 if there is none."""
        worker = asking(request)
        stops = await worker.queue.stopped(worker.id, POLL_SECONDS)
        return answer(encode({"jobsToStop": stops})) if stops else Response(status_code=204)

    @api.get("/ping/{worker}")
    async def ping(request: Request) -> Response:
        """Note which jobs the worker has in hand."""
        worker = asking(request)
        worker.queue.stops.heeded(worker.id, request.query_params.get("job_id", "").split(","))
        return Response()
