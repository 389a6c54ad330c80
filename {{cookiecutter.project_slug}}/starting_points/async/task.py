"""Yours: what a job may ask for, what is loaded once, and what one item becomes.

Each item is sent to another HTTP service at ``UPSTREAM_URL``. Until that is set, a sample in this file answers.
"""

import logging
import os
from typing import Any

import httpx2
import stamina
from pydantic import BaseModel, ConfigDict
from runpod import RunPodLogger

_client: httpx2.AsyncClient


class Input(BaseModel):
    """The job's input: items is what gets processed, every other field is an option for the whole job.

    Where to connect is none of them: a job must not choose what this worker's network can reach.
    """

    model_config = ConfigDict(extra="forbid")

    items: list[str]
    language: str = "en"


def load() -> None:
    """Make the one client of the worker's life: it keeps its connections open from item to item."""
    global _client
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # the SDK shows INFO, which here is a line per request
    url = os.environ.get("UPSTREAM_URL")
    if not url:
        RunPodLogger().warn("UPSTREAM_URL is not set: the sample in task.py answers instead of a service.")
    _client = httpx2.AsyncClient(
        base_url=url or "http://sample",
        timeout=float(os.environ.get("UPSTREAM_TIMEOUT") or 30),  # empty from a form in which nothing was typed
        limits=httpx2.Limits(max_connections=None),  # ITEM_CONCURRENCY is the limit
        transport=None if url else httpx2.MockTransport(sample),
    )


def worth_retrying(error: Exception) -> bool:
    """Whether the service may do better next time: it could not be reached, hung up, was busy or broken."""
    if isinstance(error, httpx2.HTTPStatusError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    return isinstance(error, httpx2.TransportError)


@stamina.retry(on=worth_retrying, attempts=4, timeout=60)
async def process(item: str, job: Input) -> Any:
    """Turn one item into its result: what the service answers. What this raises fails this item only."""
    response = await _client.post("", json={"text": item, "language": job.language})
    return response.raise_for_status().json()


def sample(request: httpx2.Request) -> httpx2.Response:
    """Stand in for the service: count the words."""
    text = httpx2.Response(200, content=request.content).json()["text"]
    return httpx2.Response(200, json={"text": text, "words": len(text.split())})
