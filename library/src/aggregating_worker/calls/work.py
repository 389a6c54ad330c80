"""The items of one job: which of them may start, and which outcomes can be streamed."""

import asyncio
import contextvars
import io
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel

from aggregating_worker import log
from aggregating_worker.delivery.parts import PartStream, Send
from aggregating_worker.delivery.progress import Progress, SendProgress
from aggregating_worker.outcome.overflow import Output
from aggregating_worker.outcome.result import Outcome, Raised, describe, failure
from aggregating_worker.process.attempt import Shared
from aggregating_worker.process.threads import Threads
from aggregating_worker.process.wire import Flag
from aggregating_worker.refusal import Refused
from aggregating_worker.request import Invalid

TOGETHER = 8
"""Where results wait to be streamed, this part of ``LOOKAHEAD`` starts at once."""

_numbers = count(1)


@dataclass(frozen=True, slots=True)
class Options:
    """The fields of a request other than its items, ``pickled``; jobs whose ``values`` are equal may share a call."""

    pickled: bytes
    values: bytes

    @classmethod
    def of(cls, request: object) -> "Options":
        """Return the options of a checked input; raise ``Refused`` if another process cannot get them."""
        values = request
        if isinstance(request, BaseModel):
            fields = type(request).model_fields.keys()
            request = request.model_copy(update={"items": []})
            for name in vars(request).keys() - fields - (request.model_extra or {}).keys():
                del vars(request)[name]  # a cached property, of these items
            values = vars(request), request.model_extra, request.__pydantic_private__
        try:
            return cls(_pickled(request), _pickled(values))
        except BaseException as error:  # the task's own types may raise anything
            raised = describe(error)
            log.error("The options of a job cannot be handed to the task's process", trace=raised.trace)
            raise Refused(f"The job's options cannot be handed to the task's process: {raised.message}") from None


def _pickled(value: object) -> bytes:
    """Pickle without the memo, which tells *which* text was seen rather than what it says."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, pickle.HIGHEST_PROTOCOL)
    pickler.fast = True
    pickler.dump(value)
    return buffer.getvalue()


@dataclass(eq=False, frozen=True)
class Item:
    """The item at ``place`` in the job of ``work``."""

    work: "Work"
    place: int

    @property
    def index(self) -> int:
        """Its number in the envelope."""
        return self.work.first_index + self.place

    @property
    def shared(self) -> Shared:
        """What the calls for its job have in common."""
        return self.work.shared

    def pickled(self) -> bytes | None:
        """Return the item as it goes to a process; if it cannot, fail it and return None."""
        if isinstance(item := self.work.items[self.place], Invalid):
            self.fail("InvalidItem", item.why)
            return None
        try:
            return pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
        except BaseException as error:  # the task's own types may raise anything
            raised = describe(error)
            self.log(f"Item {self.index} cannot be handed to the task's process", raised.trace)
            message = f"A {type(item).__name__} cannot be handed to the task's process: {raised.message}"
            self.fail("InvalidItem", message)
            return None

    def take(self, flags: int, pieces: list[bytes]) -> None:
        """Take the outcome, as ``process.attempt.Taker`` has it."""
        self.work.output.refresh_worker |= bool(flags & Flag.REFRESH)
        if not (flags & Flag.FILES or pieces[0].startswith(b'{"index": %d, "success": ' % self.index)):
            raise ValueError("an outcome of another item")
        if flags & Flag.FILES:
            self.work.finish(partial(self.work.output.seal, self.index, pieces), self.settle, self.index)
        else:
            self.settle(Outcome(self.index, bool(flags & Flag.SUCCESS), pieces[0]))

    def take_part(self, part: bytes) -> None:
        """Take a part, encoded."""
        if self.work.alive and self.work.parts:
            self.work.parts.add(self.index, part)

    def take_progress(self, value: bytes) -> None:
        """Take how far it is, encoded, unless it has its outcome."""
        if self.work.progress and self.work.runs(self.place):
            self.work.progress.tell(self.index, value)

    def settle(self, outcome: Outcome) -> None:
        """Give the item its outcome."""
        self.work.settle(self.place, outcome)

    def fail(self, kind: str, message: str) -> None:
        """Let the item fail."""
        self.settle(failure(self.index, kind, message))

    def fail_as(self, raised: Raised) -> None:
        """Let the item fail as its call did."""
        self.log(f"Item {self.index} failed", raised.trace)
        self.work.output.refresh_worker |= raised.refresh_worker
        self.settle(raised.outcome(self.index))

    def log(self, message: str, trace: str) -> None:
        """Log an error, in the job's own context."""
        self.work.context.copy().run(log.error, message, self.work.job_id, trace)


class Work:
    """The items of one job. An item's *place* is its position among them; its index is ``first_index + place``.

    At most ``lookahead`` items are started and not yet streamed: this bounds the memory that a job takes. Items may end
    in any order, but room in the response is given to them in input order, so that the same job always loses the same
    results if it must lose any.
    """

    def __init__(
        self,
        items: Sequence[object],
        options: Options,
        job_id: str,
        output: Output,
        *,
        first_index: int = 0,
        sent: Mapping[str, Any] = MappingProxyType({}),
        shares_calls: bool,
        lookahead: int,
        finishers: Threads,
        send_parts: Send | None = None,
        send_progress: SendProgress | None = None,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        self.items = items
        self.job_id = job_id
        self.first_index = first_index
        self.shared = Shared(
            next(_numbers), pickle.dumps((job_id, options.pickled, dict(sent)), pickle.HIGHEST_PROTOCOL)
        )
        self.context = contextvars.copy_context()
        self.group = options.values if shares_calls else b""
        """Only jobs of the same group share a call."""
        self.in_turn = False
        """Whether it is in a queue for its next turn (``turns.Group``)."""
        self.waits_since = 0.0
        self.alive = True
        self.parts = PartStream(job_id, partial(send_parts, output), self._wake) if send_parts else None
        self.progress = Progress(job_id, send_progress) if send_progress else None
        self.output = output
        self.unadmitted = 0
        """Bytes of outcomes that are made, and have no room in the response yet."""
        self._look = look
        self._finishers = finishers
        self._lookahead = lookahead
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

    def start(self) -> Item:
        """Start the next item."""
        self._started += 1
        return Item(self, self._started - 1)

    def make_room(self, results: int) -> bool:
        """Let as many more items start as ``results`` have been streamed; return whether it is time to start them.

        Where there are results enough to stream, several items start together: each start wakes another process.
        """
        self._may_start = min(self._may_start + results, len(self.items))
        return self.startable >= self._lookahead / TOGETHER or len(self._ready) < self._lookahead / 2

    def runs(self, place: int) -> bool:
        """Whether the item at ``place`` has no outcome yet, and the job is not over."""
        return self.alive and place >= self._admitted and place not in self._made

    def settle(self, place: int, outcome: Outcome) -> None:
        """Take the outcome of the item at ``place``. A second one, or one for a job that is over, is dropped."""
        if not self.runs(place):
            return
        if self.progress:
            self.progress.drop(outcome.index)
        self._made[place] = outcome
        self.unadmitted += outcome.size
        while self._admitted in self._made:
            place = self._admitted
            self._admitted += 1
            made = self._made.pop(place)
            self.unadmitted -= made.size
            admitted = self.output.admit(made)
            if isinstance(admitted, Outcome):
                self._set_ready(place, admitted)
            else:
                self.finish(admitted, partial(self._set_ready, place), made.index)

    def finish(self, make: Callable[[], Outcome], take: Callable[[Outcome], None], index: int) -> None:
        """Run ``make``, which blocks, in a thread, and hand its outcome to ``take``."""
        loop = asyncio.get_running_loop()

        def finished(outcome: Outcome) -> None:
            take(outcome)
            self._look()  # its call has ended before, and what could start has been looked for without it

        def finish() -> None:
            try:
                outcome = make()
            except Exception as error:  # the pieces of a result are what a process says they are
                raised = describe(error)
                log.error(f"Item {index} failed", self.job_id, raised.trace)
                outcome = raised.outcome(index)
            with suppress(RuntimeError):  # the loop is closed: the worker is exiting, and nobody waits for this
                loop.call_soon_threadsafe(finished, outcome)

        try:
            self._finishers.run(finish)
        except RuntimeError as error:  # no thread could be started
            loop.call_soon(finished, failure(index, "NotStored", str(error)))

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

    def end(self) -> None:
        """End the job."""
        self.alive = False
        for task in list(self.parts.posting.values()) if self.parts else []:
            task.cancel()
        if self.progress:
            self.progress.stop()
