"""One call of the task after another in one slot: a list of items, and if it fails, its halves."""

import asyncio
import copy
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from pydantic import BaseModel

from worker import log
from worker.calls import subtasks
from worker.calls.threads import Threads
from worker.calls.work import Work
from worker.outcome.result import Envelope, Raised, describe, failure, success

LET_GO_AFTER = 1.0
"""Seconds that a cancelled async call has to clean up."""

Function = Callable[[Any, Any], Any]


class Item(NamedTuple):
    """The item at ``place`` in the job of ``work``."""

    work: Work
    place: int

    @property
    def number(self) -> int:
        """The ``index`` of its envelope."""
        return self.work.first_index + self.place

    def settle(self, envelope: Envelope) -> None:
        """Give the item its outcome."""
        self.work.settle(self.place, envelope)


@dataclass(frozen=True)
class Task:
    """How the task's function is called: ``timeout`` is in seconds per item, 0 for none."""

    function: Function
    batched: bool
    is_async: bool
    timeout: float
    threads: Threads


@dataclass(eq=False)
class Call:
    """A slot in use, from the items it is given to ``ended``.

    A batch that raises is halved, and the halves are tried, until the guilty items are alone. Whatever the task does,
    each item is settled: by the call, by its time running out, or by nobody if its job is over.
    """

    task: Task
    ended: Callable[["Call"], None]
    gave_up: Callable[[], None]
    items: list[Item] = field(default_factory=list)
    """What is being tried."""
    given_up: float | None = None
    """Since when nobody waits for what is being tried, in seconds of ``time.monotonic``."""
    _left: list[list[Item]] = field(default_factory=list)
    _outcome: list[list[Envelope] | Raised] = field(default_factory=list)
    _running: "asyncio.Task[None] | None" = None
    _timer: asyncio.TimerHandle | None = None

    def start(self, items: list[Item]) -> None:
        """Begin with ``items``."""
        self._left.append(items)
        self._go_on()

    def drop(self, work: Work) -> "asyncio.Task[None] | None":
        """Give up if nobody but ``work``, which is over, had items in what is being tried; return what is to end."""
        if not any(item.work is work for item in self.items) or any(item.work.alive for item in self.items):
            return None
        if self.given_up is None:
            self._give_up()
        return self._running

    def _go_on(self) -> None:
        while self._left:
            self.items = [item for item in self._left.pop() if item.work.alive]
            if self.items:
                return self._try()
        self.items = []
        return self.ended(self)

    def _try(self) -> None:
        loop = asyncio.get_running_loop()
        self.given_up, self._outcome = None, []
        if self.task.timeout:
            self._timer = loop.call_later(self.task.timeout * len(self.items), self._expire)
        if self.task.is_async:
            # Not through the loop's task factory, and never awaited: whatever the function does to it ends with it.
            self._running = asyncio.Task(self._await())
            self._running.add_done_callback(lambda _: self._tried())
            return
        try:
            self.task.threads.run(self._block, lambda _: self._tried())
        except RuntimeError as error:  # no thread could be started
            self._outcome.append(describe(error))
            loop.call_soon(self._tried)

    def _block(self) -> None:
        try:
            self._outcome.append(self._seal(self.task.function(*self._arguments())))
        except BaseException as error:  # described here: a future cannot carry ``StopIteration``
            self._outcome.append(describe(error))

    async def _await(self) -> None:
        subtasks.guarded.set(True)
        try:
            self._outcome.append(self._seal(await self.task.function(*self._arguments())))
        except BaseException as error:  # a task lets ``SystemExit`` end the event loop
            if isinstance(error, asyncio.CancelledError) and self.given_up is not None:
                raise  # ours; any other comes from the function itself, and is a failure like the rest
            self._outcome.append(describe(error))

    def _arguments(self) -> tuple[Any, Any]:
        """Return what the function gets: copies of a batch's items, so that it cannot change what a half would get.

        For items of several jobs, the second is what those have in common, with these items.
        """
        items = [work.items[place] for work, place in self.items]
        first = self.items[0].work
        if not self.task.batched:
            return items[0], first.job
        if len(items) > 1:
            with suppress(BaseException):  # what cannot be copied is given as it is
                items = copy.deepcopy(items)
        if isinstance(first.job, BaseModel) and any(work is not first for work, _ in self.items):
            return items, first.job.model_copy(update={"items": list(items)})
        return items, first.job

    def _seal(self, returned: Any) -> list[Envelope]:
        if not self.task.batched:
            return [_sealed(self.items[0].number, returned)]
        if not isinstance(returned, list | tuple) and not hasattr(returned, "tolist"):
            found = f"a {type(returned).__name__}, not a list"
        elif len(returned) != len(self.items):
            found = f"{len(returned)} results"
        else:
            return [_sealed(item.number, value) for item, value in zip(self.items, returned, strict=True)]
        message = f"process_batch returned {found} for {len(self.items)} items."
        return [failure(item.number, "WrongResults", message) for item in self.items]

    def _tried(self) -> None:
        if self._timer:
            self._timer.cancel()
        if self.given_up is None and self._outcome:
            self._settle(self._outcome[0])
        self._running, self._outcome = None, []
        self._go_on()

    def _settle(self, outcome: list[Envelope] | Raised) -> None:
        if not isinstance(outcome, Raised):
            for item, envelope in zip(self.items, outcome, strict=True):
                item.settle(envelope)
        elif len(self.items) == 1:
            [item] = self.items
            log.error(f"Item {item.number} failed", outcome, item.work.job_id)
            item.settle(outcome.envelope(item.number))
        else:
            log.error(f"A batch of {len(self.items)} failed; now its halves", outcome, self.items[0].work.job_id)
            half = len(self.items) // 2
            self._left += [self.items[half:], self.items[:half]]

    def _expire(self) -> None:
        message = f"No result within {self.task.timeout:g} s per item (ITEM_TIMEOUT)."
        for item in self.items:
            item.settle(failure(item.number, "TimeoutError", message))
        self._give_up()

    def _give_up(self) -> None:
        """Wait no longer; an async call is cancelled, a blocking one keeps the slot until it returns."""
        self.given_up = time.monotonic()
        if self._running and self._running.cancel():
            # If it will not, leave it: the event loop must not wait for it to close.
            loop = asyncio.get_running_loop()
            loop.call_later(LET_GO_AFTER, partial(asyncio._unregister_task, self._running))
        self.gave_up()


def _sealed(index: int, value: object) -> Envelope:
    try:
        return success(index, value)
    except BaseException as error:
        return describe(error).envelope(index)
