"""The items of one job: which of them may start, and which outcomes can be streamed."""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel

from aggregating_worker.calls.threads import Threads
from aggregating_worker.delivery.parts import PartStream, Send
from aggregating_worker.outcome.overflow import Output
from aggregating_worker.outcome.result import Outcome, failure


class Options:
    """The fields of a request other than its items. Jobs with equal options may share a call.

    Options must be equal *and* have the same ``repr``: ``1 == True``, and all secrets print alike, so neither test
    alone is enough. Options that cannot be compared are equal to no others.
    """

    def __init__(self, request: object) -> None:
        self._values = {}
        self._text = ""
        if isinstance(request, BaseModel):
            self._values = {**dict(request), **(request.__pydantic_private__ or {})}
            self._values.pop("items", None)
        try:
            self._text = repr(self._values)
        except BaseException:  # the task's own code
            self._values = {"": self}

    def __eq__(self, other: object) -> bool:
        try:
            return isinstance(other, Options) and self._text == other._text and bool(self._values == other._values)
        except BaseException:
            return self is other


class Work:
    """The items of one job. An item's *place* is its position among them; its index is ``first_index + place``.

    At most ``lookahead`` items are started and not yet streamed: this bounds the memory that a job takes. Items may end
    in any order, but room in the response is given to them in input order, so that the same job always loses the same
    results if it must lose any.
    """

    def __init__(
        self,
        items: Sequence[object],
        request: object,
        job_id: str,
        output: Output,
        *,
        first_index: int = 0,
        sent: Mapping[str, Any],
        lookahead: int,
        finishers: Threads,
        options: Options | None = None,
        send_parts: Send | None = None,
    ) -> None:
        self.items = items
        self.request = request
        """The job's checked input, which each call gets as ``job``."""
        self.job_id = job_id
        self.first_index = first_index
        self.sent = sent
        """The job as the platform sent it, without credentials."""
        self.options = options
        """Only jobs with equal options share its calls."""
        self.in_turn = False
        """Whether it is in a queue for its next turn (``pool.Group``)."""
        self.alive = True
        self.parts = PartStream(job_id, partial(send_parts, output), self._wake) if send_parts else None
        self.output = output
        self._finishers = finishers
        self._started = 0
        self._may_start = min(lookahead, len(items))
        self._made: dict[int, Outcome] = {}
        self._admitted = 0
        self._ready: dict[int, Outcome] = {}
        self._taken = 0
        self._waits: asyncio.Future[None] | None = None

    @property
    def startable(self) -> int:
        """How many items could start now."""
        return self._may_start - self._started if self.alive else 0

    @property
    def unmade(self) -> bool:
        """Whether an item has no outcome yet, and the job is not over."""
        return self.alive and self._admitted < len(self.items)

    @property
    def begun(self) -> bool:
        """Whether an item has its outcome."""
        return bool(self._admitted or self._made)

    def start(self) -> int:
        """Start the next item; return its place."""
        self._started += 1
        return self._started - 1

    def make_room(self, results: int) -> None:
        """Let as many more items start as ``results`` have been streamed."""
        self._may_start = min(self._may_start + results, len(self.items))

    def settle(self, place: int, outcome: Outcome) -> None:
        """Take the outcome of the item at ``place``. A second one, or one for a job that is over, is dropped."""
        if not self.alive or place < self._admitted or place in self._made:
            return
        self._made[place] = outcome
        while self._admitted in self._made:
            place = self._admitted
            self._admitted += 1
            admitted = self.output.admit(self._made.pop(place))
            if isinstance(admitted, Outcome):
                self._set_ready(place, admitted)
            else:
                self._finishers.run(admitted, partial(self._set_ready, place))

    def fail_rest(self, kind: str, message: str) -> None:
        """Let every item that has no outcome yet fail, started or not."""
        self._started = self._may_start = len(self.items)
        for place in range(self._admitted, len(self.items)):
            self.settle(place, failure(self.first_index + place, kind, message))

    def _set_ready(self, place: int, outcome: Outcome) -> None:
        self._ready[place] = outcome
        if place == self._taken:
            self._wake()

    def _wake(self) -> None:
        if self._waits and not self._waits.done():
            self._waits.set_result(None)

    def next_ready(self, most_bytes: int) -> Outcome | None:
        """Return the next outcome in order; None if it is not ready, is larger, or has parts yet to be posted."""
        outcome = self._ready.get(self._taken)
        if outcome is None or outcome.size > most_bytes or (self.parts and outcome.index in self.parts.posting):
            return None
        self._taken += 1
        return self._ready.pop(self._taken - 1)

    async def head(self) -> Outcome:
        """Return the next outcome in order, once it can be streamed."""
        while (outcome := self.next_ready(sys.maxsize)) is None:
            self._waits = asyncio.get_running_loop().create_future()
            await self._waits
        return outcome

    def end(self) -> "list[asyncio.Task[None]]":
        """End the job; return its tasks that are about to end."""
        self.alive = False
        posting = list(self.parts.posting.values()) if self.parts else []
        for task in posting:
            task.cancel()
        return posting
