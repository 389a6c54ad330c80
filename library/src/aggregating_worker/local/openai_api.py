"""The OpenAI API, for callers, under ``/v2/local/openai``: the worker is sent the route and the body, and answers them.

So a worker sees it (runpod-workers/worker-vllm, ``src/handler.py``): ``{"openai_route", "openai_input"}`` is its input,
and what it yields to a request with ``stream`` are texts that hold server-sent events (``RAW_OPENAI_OUTPUT``), or what
such events hold.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from aggregating_worker.local.body import Body, answer, encode, read
from aggregating_worker.local.client_api import LONGEST, MAX_BODY, checked
from aggregating_worker.local.job import Job
from aggregating_worker.local.queue import Full, Queue
from aggregating_worker.local.routes import Routes

OPERATION = "runsync"
"""The operation whose limits these requests have."""
DONE = b"data: [DONE]\n\n"


def openai_api(api: Routes, queue: Queue) -> None:
    """Add the OpenAI API's routes to ``api``."""

    @api.any("/openai/{route*}")
    async def pass_on(request: Request) -> Response:
        """Queue a job; answer with its output or, if the body has ``stream``, with its events as they come."""
        asked = await read(request, MAX_BODY[OPERATION]) if request.method == "POST" else Body({}, b"null")
        route = f"/{request.path_params['route']}"
        given = {"openai_route": route, "openai_input": asked.content}
        text = b'{"input":{"openai_route":%s,"openai_input":%s}}' % (encode(route), asked.text)
        try:
            job = queue.submit(Job.of(OPERATION, checked(Body({"input": given}, text))))
        except Full as full:
            raise HTTPException(429, f"too many requests: {full}") from None
        if asked.content.get("stream") is True:
            await job.changed.wait(lambda: bool(job.chunks) or job.final, LONGEST / 1000)
            if job.chunks or job.status == "COMPLETED":
                return StreamingResponse(_events(queue, job), media_type="text/event-stream")
        await job.changed.wait(lambda: job.final, LONGEST / 1000)
        if job.status == "COMPLETED":
            output = _outcome(job).get("output")
            return answer(encode(output[0] if isinstance(output, list) and len(output) == 1 else output))
        return answer(encode(_failure(job)), 500)


async def _events(queue: Queue, job: Job) -> AsyncIterator[bytes]:
    """Yield the events of ``job`` until it has ended; those in its output, if it has yielded none."""
    told = raw = False
    while True:
        await job.changed.wait(lambda: bool(job.chunks) or job.final, LONGEST / 1000)
        if chunks := queue.drain(job):
            outputs = [json.loads(chunk)["output"] for chunk in chunks]
        elif job.status == "COMPLETED" and not told:
            outputs = [_outcome(job).get("output")]
        else:
            break
        told = True
        raw = any(isinstance(output, str) for output in outputs)
        yield b"".join(map(_event, outputs))
    if job.status != "COMPLETED":
        yield _event(_failure(job))
    elif not raw:  # a text has all that the worker wants to say, its end, too
        yield DONE


def _event(output: Any) -> bytes:
    if isinstance(output, str):
        return output.encode("utf-8", "replace")
    if isinstance(output, list):
        return b"".join(map(_event, output))
    return b"data: %s\n\n" % encode(output)


def _outcome(job: Job) -> dict[str, Any]:
    outcome: dict[str, Any] = json.loads(b"{%s}" % job.outcome)
    return outcome


def _failure(job: Job) -> dict[str, Any]:
    """Return why ``job`` has no result, as the OpenAI API has it."""
    error = _outcome(job).get("error", f"job {job.id} is {job.status}")
    message = error if isinstance(error, str) else json.dumps(error)
    return {"error": {"message": message, "type": "server_error", "param": None, "code": None}}
