"""A job as it is sent to the endpoint, and the endpoint's answers about it: its state and the envelopes in that."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeGuard
from urllib.parse import quote

from aggregating_worker.client.envelopes import Envelope, aggregate, encode, flatten, is_envelope, is_parts
from aggregating_worker.client.http import CallFailed
from aggregating_worker.sentence import one_line

FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")
STATES = ("IN_QUEUE", "IN_PROGRESS", *FINAL)
"""A job's states (Runpod docs, serverless/endpoints/job-states)."""

Job = Mapping[str, Any]
"""A request as the platform takes it: ``{"input": {"items": […], …}}``, and a ``policy`` if wanted."""


class JobFailed(CallFailed):
    """A job ended without results. ``state`` is its final state, or ``LOST`` if the endpoint does not know the job."""

    def __init__(self, job_id: str, state: str, message: str) -> None:
        super().__init__(f"Job {one_line(job_id)} {state}: {one_line(message)}.")
        self.state = state
        self.reason = one_line(message)


class AnotherWorker(CallFailed):
    """An answer does not come from this library's worker, or is in an older form."""

    def __init__(self, job_id: str, fault: str, output: Any = None) -> None:
        super().__init__(f"Job {one_line(job_id)}: {fault}. Is another worker behind this endpoint?")
        self.output = output
        """What came, if the job has ended well."""


def item_count(job: Job) -> int | None:
    """Return how many items a job has, or None if it has no list of items."""
    items = _input(job).get("items")
    return len(items) if isinstance(items, list) else None


def first_index(job: Job) -> int:
    """Return the index of a job's first envelope."""
    first = _input(job).get("first_index")
    return first if type(first) is int else 0


def checked(state: dict[str, Any]) -> dict[str, Any]:
    """Return ``state`` if it is the state of a job. Raises ``CallFailed``."""
    if is_id(state.get("id")) and state.get("status") in STATES:
        return state
    raise CallFailed("The endpoint's answer is not the state of a job: is RUNPOD_ENDPOINT_BASE_URL right?")


def is_id(value: Any) -> TypeGuard[str]:
    """Whether ``value`` is a text that a URL can have in it."""
    with suppress(UnicodeEncodeError):  # half of a surrogate pair
        return isinstance(value, str) and bool(quote(value))
    return False


def streamed(state: dict[str, Any]) -> list[Any]:
    """Return what is in an answer of ``/stream``: envelopes and parts, and chunks that are neither."""
    chunks = state.get("stream")
    outputs = [chunk.get("output") for chunk in chunks if isinstance(chunk, dict)] if isinstance(chunks, list) else []
    return [each for output in outputs for each in (flatten([output]) if _is_ours(output) else [output])]


def _is_ours(output: Any) -> bool:
    return all(is_envelope(each) or is_parts(each) for each in flatten([output]))


def output(state: dict[str, Any], items: int | None, first: int | None = 0) -> list[Envelope]:
    """Return the envelopes of a job that has ended: one for each of ``items``, in order, from index ``first`` on.

    If ``items`` is None there may be any number, if ``first`` is None they may start at any index. Raises
    ``JobFailed``, with the platform's message, if the job has no results, and ``AnotherWorker``.
    """
    if state["status"] != "COMPLETED":
        error = state.get("error") or "the platform gave no reason"
        raise JobFailed(state["id"], state["status"], error if isinstance(error, str) else encode(error).decode())
    try:
        return aggregate(state.get("output"), items, first)
    except ValueError as error:
        raise AnotherWorker(state["id"], str(error), state.get("output")) from None


def _input(job: Job) -> Mapping[str, Any]:
    given = job.get("input")
    return given if isinstance(given, Mapping) else {}
