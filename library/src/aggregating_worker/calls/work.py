"""The items of one job on their way: which may start, what is made of them, what is ready to be streamed."""

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
    """What a job asks for beside its items, as a key: jobs with equal options may share a call.

    Equal and alike to the letter: ``1 == True``, and a secret looks like any other. What cannot be compared is equal to
    nothing.
    """

    def __init__(self, job: object) -> None:
        self._values = {}
        self._text = ""
        if isinstance(job, BaseModel):
            self._values = {**dict(job), **(job.__pydantic_private__ or {})}
            self._values.pop("items", None)
        try:
            self._text = repr(self._values)
        except BaseException:  # a type of the task's own
            self._values = {"": self}

    def __eq__(self, other: object) -> bool:
        try:
            return isinstance(other, Options) and self._text == other._text and bool(self._values == other._values)
        except BaseException:
            return self is other


class Work:
    """The items of one job; ``job`` is what each call gets with them, ``first_index`` the first one's number outside.

    *Room* is one of ``lookahead`` results that are started and not yet streamed: the bound on what a job holds.
    Results may be made in any order. Room in the response is given to them in the order of the items, whoever is done
    first, so that the same job always loses the same results if it must lose any.
    """

    def __init__(
        self,
        items: Sequence[object],
        job: object,
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
        self.job = job
        self.job_id = job_id
        self.first_index = first_index
        self.sent = sent
        """The job as the platform sent it."""
        self.options = options
        """What keeps it from sharing calls with other jobs."""
        self.in_turn = False
        """Whether the pool has it among those whose turn will come."""
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
        """Whether a result is still to be made, and wanted."""
        return self.alive and self._admitted < len(self.items)

    @property
    def begun(self) -> bool:
        """Whether a result has been made."""
        return bool(self._admitted or self._made)

    def start(self) -> int:
        """Return the index of the next item, which starts now."""
        self._started += 1
        return self._started - 1

    def make_room(self, results: int) -> None:
        """Let as many more items start: that many results have been streamed."""
        self._may_start = min(self._may_start + results, len(self.items))

    def settle(self, index: int, envelope: Outcome) -> None:
        """Take what became of the item at ``index``; what comes twice, or for a job that is over, is dropped."""
        if not self.alive or index < self._admitted or index in self._made:
            return
        self._made[index] = envelope
        while self._admitted in self._made:
            index = self._admitted
            self._admitted += 1
            admitted = self.output.admit(self._made.pop(index))
            if isinstance(admitted, Outcome):
                self._set_ready(index, admitted)
            else:
                self._finishers.run(admitted, partial(self._set_ready, index))

    def fail_rest(self, kind: str, message: str) -> None:
        """Let every item that has no result yet fail, started or not."""
        self._started = self._may_start = len(self.items)
        for index in range(self._admitted, len(self.items)):
            self.settle(index, failure(self.first_index + index, kind, message))

    def _set_ready(self, index: int, envelope: Outcome) -> None:
        self._ready[index] = envelope
        if index == self._taken:
            self._wake()

    def _wake(self) -> None:
        if self._waits and not self._waits.done():
            self._waits.set_result(None)

    def next_ready(self, most_bytes: int) -> Outcome | None:
        """Return the next envelope in order, if it is ready, of at most so many bytes, and all its parts are posted."""
        envelope = self._ready.get(self._taken)
        if envelope is None or envelope.size > most_bytes or (self.parts and envelope.index in self.parts.posting):
            return None
        self._taken += 1
        return self._ready.pop(self._taken - 1)

    async def head(self) -> Outcome:
        """Return the next envelope in order, once it can be streamed."""
        while (envelope := self.next_ready(sys.maxsize)) is None:
            self._waits = asyncio.get_running_loop().create_future()
            await self._waits
        return envelope

    def end(self) -> "list[asyncio.Task[None]]":
        """Want nothing more; return what is about to end."""
        self.alive = False
        posting = list(self.parts.posting.values()) if self.parts else []
        for task in posting:
            task.cancel()
        return posting
