"""A job: its request and its results, which are kept and passed on as the JSON that came."""

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aggregating_worker.local.body import Body, encode, members

GIVEN = frozenset(("input", "webhook", "webhookV2", "s3Config"))
"""The members of a request that a worker is given, beside the id. The policy is for the queue, others are dropped."""
FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")
BOOTED = time.time() - time.monotonic()
"""Added to ``time.monotonic()``, it gives a date."""
OWN_BYTES = 4_096
"""Bytes of memory for a job beside its request and results, roughly."""


class Signal:
    """Wakes those who wait for a condition, on one event loop."""

    def __init__(self) -> None:
        self._changed: asyncio.Event | None = None
        self._ended = False

    def end(self) -> None:
        """Let nobody wait from now on."""
        self._ended = True
        self.notify()

    def notify(self) -> None:
        """Have all who wait look at their conditions again."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def wait(self, condition: Callable[[], bool], seconds: float) -> None:
        """Return once ``condition()`` holds, ``seconds`` have passed, or ``end`` was called."""
        if condition():
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not (condition() or self._ended):
                    self._changed = self._changed or asyncio.Event()
                    await self._changed.wait()


@dataclass(eq=False)
class Job:
    """A job of ``/run``, ``/runsync`` or ``batch``. Times are seconds of ``time.monotonic``."""

    operation: str
    request: bytes
    """The members of the request that a worker is given, as JSON without the braces; so are ``outcome``'s."""
    policy: dict[str, float]
    webhook: str | None
    items: int | None
    """The number of items, if the input has a list of them."""
    batch: str | None = None
    id: str = ""
    status: str = "IN_QUEUE"
    worker: str | None = None
    retries: int = 0
    queued: float = field(default_factory=time.monotonic)
    taken: float | None = None
    ended: float | None = None
    outcome: bytes = b""
    chunks: deque[bytes] = field(default_factory=deque)
    """Each as ``{"output": …}``, until a caller fetches it."""
    size: int = OWN_BYTES
    """Bytes of memory that it takes."""
    changed: Signal = field(default_factory=Signal)
    expiry: asyncio.TimerHandle | None = None
    timer: asyncio.TimerHandle | None = None

    @classmethod
    def of(cls, operation: str, body: Body, batch: str | None = None) -> "Job":
        """Return the job that the checked ``body`` asks for."""
        content = body.content
        given = content["input"]
        items = given.get("items") if isinstance(given, dict) else None
        request = members(body, GIVEN)
        return cls(
            operation,
            request,
            content.get("policy") or {},
            content.get("webhook"),
            len(items) if isinstance(items, list) else None,
            batch,
            {"runsync": "sync-", "batch": "req-"}.get(operation, "") + f"{uuid.uuid4()}-u1",
            size=OWN_BYTES + len(request),
        )

    @property
    def final(self) -> bool:
        """Whether it has ended."""
        return self.status in FINAL

    def limit(self, name: str, milliseconds: int) -> float:
        """Return a limit of the request's ``policy`` in seconds; ``milliseconds`` is the platform's default."""
        return self.policy.get(name, milliseconds) / 1000

    def facts(self) -> dict[str, Any]:
        """Return its state without its results; ``delayTime`` and ``executionTime`` are milliseconds."""
        facts: dict[str, Any] = {"id": self.id, "status": self.status}
        if self.taken is not None:
            facts |= {"delayTime": round((self.taken - self.queued) * 1000), "workerId": self.worker}
            if self.ended is not None:
                facts["executionTime"] = round((self.ended - self.taken) * 1000)
        if self.retries:
            facts["retries"] = self.retries
        return facts

    def state(self) -> bytes:
        """Return what ``/status`` answers."""
        return join(self.facts(), self.outcome)

    def listed(self) -> bytes:
        """Return its entry in the list of a batch's requests."""
        times = {"startedAt": self.taken, "completedAt": self.ended}
        shown = {name: _date(moment) for name, moment in times.items() if moment is not None}
        return join({"id": self.id, "status": self.status, **shown}, self.outcome)

    def handout(self) -> bytes:
        """Return what a worker is given."""
        return join({"id": self.id} if self.batch is None else {"id": self.id, "batchId": self.batch}, self.request)


def join(facts: dict[str, Any], more: bytes) -> bytes:
    """Return ``facts`` as JSON, and the members ``more`` in the same object."""
    return b"%s,%s}" % (encode(facts)[:-1], more) if more else encode(facts)


def _date(moment: float) -> str:
    return datetime.fromtimestamp(BOOTED + moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
