"""What an endpoint is asked for and what it says of it: a job, its state, and the envelopes in that."""

from collections.abc import Mapping
from typing import Any

from aggregating_worker.client.envelopes import Envelope, Parts, aggregate, encode, flatten, is_envelope, is_parts
from aggregating_worker.client.http import CallFailed
from aggregating_worker.sentence import one_line

FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")
STATES = ("IN_QUEUE", "IN_PROGRESS", *FINAL)
"""A job's states (Runpod docs, serverless/endpoints/job-states)."""

Job = Mapping[str, Any]
"""A request as the platform takes it: ``{"input": {"items": […], …}}``, and if need be a ``policy``."""


class JobFailed(CallFailed):
    """A job ended without its results. ``state`` is its last one, or ``LOST`` if the endpoint no longer knows it."""

    def __init__(self, job_id: str, state: str, message: str) -> None:
        super().__init__(f"Job {one_line(job_id)} {state}: {one_line(message)}.")
        self.state = state


def item_count(job: Job) -> int | None:
    """Return how many items a job has, None if it has no list of them."""
    items = _input(job).get("items")
    return len(items) if isinstance(items, list) else None


def first_index(job: Job) -> int:
    """Return the index that a job's first envelope has."""
    first = _input(job).get("first_index")
    return first if type(first) is int else 0


def checked(state: dict[str, Any]) -> dict[str, Any]:
    """Return ``state`` if it is a job's."""
    if isinstance(state.get("id"), str) and state.get("status") in STATES:
        return state
    raise CallFailed("What the endpoint answered is not a job's state: is its address right?")


def streamed(state: dict[str, Any]) -> list[Envelope | Parts]:
    """Return what has arrived in an answer of ``/stream``; whatever else is in it is left to the aggregate."""
    chunks = state.get("stream")
    outputs = [chunk.get("output") for chunk in chunks if isinstance(chunk, dict)] if isinstance(chunks, list) else []
    return [each for each in flatten(outputs) if is_envelope(each) or is_parts(each)]


def output(state: dict[str, Any], items: int | None, first: int | None = 0) -> list[Envelope]:
    """Return the envelopes of a job that has ended: one for each of ``items``, in order, from index ``first`` on.

    None for either: as many as there are, from whatever index.
    Raises ``JobFailed`` with the platform's message if it has none.
    """
    if state["status"] != "COMPLETED":
        error = state.get("error") or "the platform gives no reason"
        raise JobFailed(state["id"], state["status"], error if isinstance(error, str) else encode(error).decode())
    try:
        return aggregate(state.get("output"), items, first)
    except ValueError as error:
        raise another_worker(state["id"], str(error)) from None


def another_worker(job_id: str, fault: str) -> CallFailed:
    """Return what to raise where an answer is not this worker's."""
    return CallFailed(f"Job {one_line(job_id)}: {fault}. Is another worker behind this endpoint?")


def _input(job: Job) -> Mapping[str, Any]:
    given = job.get("input")
    return given if isinstance(given, Mapping) else {}
