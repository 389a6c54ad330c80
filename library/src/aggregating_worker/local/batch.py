"""Batch Jobs: many requests under one id (Runpod docs, serverless/advanced-workflows/batch-jobs)."""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aggregating_worker.local.job import Job
from aggregating_worker.local.queue import Full, Queue

ACTIVE = 10
"""Batches that have not ended, at most."""
REQUESTS = 5_000
"""Requests of one batch, at most."""
QUEUED = 50_000
"""Requests of all batches that no worker has taken, at most."""

KEPT = 100
"""Ended batches that are kept; the oldest are dropped first."""


@dataclass(eq=False)
class Batch:
    """Many requests under one id, added while it is a ``DRAFT`` and run once it is ``FINALIZED``.

    It stays ``FINALIZED`` when all its requests have ended, unless it was ``CANCELLED``.
    """

    name: str | None = None
    id: str = field(default_factory=lambda: f"batch_{uuid.uuid4().hex}")
    requests: dict[str, Job] = field(default_factory=dict)
    finalized: bool = False
    cancelled: bool = False
    completed: int = 0
    failed: int = 0
    dropped: int = 0
    """Requests that were cancelled with the batch."""
    created: int = field(default_factory=lambda: time.time_ns() // 1_000_000)

    def state(self, in_progress: int) -> dict[str, Any]:
        """Return what ``GET /batch/{id}`` answers."""
        state = {
            "id": self.id,
            "endpointId": "local",
            "status": self.status,
            "requestTotal": len(self.requests),
            "requestInProgress": in_progress,
            "requestCompleted": self.completed,
            "requestFailed": self.failed,
            "createdAt": self.created,
        }
        return state if self.name is None else {**state, "name": self.name}

    @property
    def status(self) -> str:
        """The platform's status; it is ``CANCELLED`` only once the requests that were running have finished."""
        if self.cancelled and self.ended:
            return "CANCELLED"
        return "FINALIZED" if self.finalized else "DRAFT"

    @property
    def ended(self) -> bool:
        """Whether none of its requests will run any more."""
        if not self.finalized:
            return self.cancelled
        return self.completed + self.failed + self.dropped == len(self.requests)


class BatchQueue:
    """All batches of the endpoint, with a ``queue`` of their own; ``on_finalized`` is called when one is queued."""

    def __init__(self, queue: Queue) -> None:
        self.on_finalized: Callable[[], None] = lambda: None
        self._queue = queue
        self._batches: dict[str, Batch] = {}
        queue.on_final = self._note

    def create(self, jobs: list[Job]) -> Batch:
        """Return a new ``DRAFT`` with these requests. Raises ``Full``."""
        if sum(not batch.ended for batch in self._batches.values()) >= ACTIVE:
            raise Full(f"at most {ACTIVE} batches can be active at once")
        batch = Batch()
        self.add(batch, jobs)
        self._batches[batch.id] = batch
        for ended in [batch for batch in self._batches.values() if batch.ended][:-KEPT]:
            del self._batches[ended.id]
            for job in ended.requests.values():
                self._queue.forget(job)
        return batch

    def add(self, batch: Batch, jobs: list[Job]) -> None:
        """Add requests to a ``DRAFT``. Raises ``ValueError`` if it has too many, ``Full`` if memory is short."""
        if len(batch.requests) + len(jobs) > REQUESTS:
            raise ValueError(f"a batch has at most {REQUESTS} requests")
        drafts = [each.requests.values() for each in self._batches.values() if not (each.finalized or each.cancelled)]
        if not self._queue.fits(sum(job.size for requests in [*drafts, jobs] for job in requests)):
            raise Full("no memory is left for more requests")
        for job in jobs:
            job.batch = batch.id
            batch.requests[job.id] = job

    def finalize(self, batch: Batch) -> None:
        """Queue the requests of a ``DRAFT``. Raises ``Full``."""
        if self._queue.waiting + len(batch.requests) > QUEUED:
            raise Full(f"at most {QUEUED} requests can wait at once")
        self._queue.submit_all([*batch.requests.values()])
        batch.finalized = True
        self.on_finalized()

    def cancel(self, batch: Batch) -> None:
        """Drop the requests that wait; those that run are finished."""
        batch.cancelled = True
        for job in batch.requests.values() if batch.finalized else ():
            if job.status == "IN_QUEUE":
                self._queue.cancel(job)

    def find(self, batch_id: str) -> Batch | None:
        """Return a batch by its id."""
        return self._batches.get(batch_id)

    def states(self, most: int | None = None) -> list[dict[str, Any]]:
        """Return the states of all batches, newest first, or of the latest ``most``."""
        return [self.state(batch) for batch in [*reversed(self._batches.values())][:most]]

    def state(self, batch: Batch) -> dict[str, Any]:
        """Return what ``GET /batch/{id}`` answers."""
        return batch.state(sum(job.batch == batch.id for job in self._queue.held))

    def _note(self, job: Job) -> None:
        batch = self._batches[job.batch or ""]
        batch.completed += job.status == "COMPLETED"
        batch.failed += job.status in ("FAILED", "TIMED_OUT")
        batch.dropped += job.status == "CANCELLED"
