"""What a slot does: it tries items together and, if that fails, by halves, until each has its outcome."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from aggregating_worker import log
from aggregating_worker.calls.attempt import Attempt, Item, Made
from aggregating_worker.calls.function import TaskFunction
from aggregating_worker.calls.work import Work
from aggregating_worker.outcome.result import Outcome, Raised, failure

SETTLED_AT_ONCE = 4
"""Outcomes of a call that are handed on before the event loop has its turn."""

CANCELLED = Raised("CancelledError", "Something other than the worker cancelled the call.", "")


@dataclass(eq=False)
class Call:
    """A slot in use, from the items it is given to ``ended``.

    A batch that raises is halved, and the halves are tried, until the guilty items are alone. Whatever the task does,
    every item gets exactly one outcome, unless its job was cancelled.
    """

    task: TaskFunction
    ended: Callable[["Call"], None]
    gave_up: Callable[[list[list[Item]]], None]
    """Called with the halves that are still to be tried: in other slots."""
    _left: list[list[Item]] = field(default_factory=list)
    _attempt: Attempt | None = None
    _timer: asyncio.TimerHandle | None = None

    @property
    def items(self) -> list[Item]:
        """The items that are being tried."""
        return self._attempt.items if self._attempt else []

    @property
    def given_up(self) -> float | None:
        """When the attempt was given up, in seconds of ``time.monotonic``: nobody waits for it any more."""
        return self._attempt.given_up if self._attempt else None

    def start(self, items: list[Item]) -> None:
        """Begin with ``items``."""
        self._left.append(items)
        self._go_on()

    def drop(self, work: Work) -> "asyncio.Task[None] | None":
        """Give up the attempt if only jobs that are over, like ``work``, have items in it; return its asyncio task."""
        attempt = self._attempt
        if not attempt or not any(item.work is work for item in attempt.items):
            return None
        if any(item.work.alive for item in attempt.items):
            return None
        if attempt.given_up is None:
            self._give_up(attempt)
        return attempt.running

    def _go_on(self) -> None:
        self._attempt = None
        while self._left:
            if items := [item for item in self._left.pop() if item.work.alive]:
                return self._try(Attempt(self.task, items))
        return self.ended(self)

    def _try(self, attempt: Attempt) -> None:
        self._attempt = attempt
        if self.task.timeout:
            seconds = self.task.timeout * len(attempt.items)
            self._timer = asyncio.get_running_loop().call_later(seconds, self._expire, attempt)
        attempt.start(partial(self._tried, attempt))

    def _tried(self, attempt: Attempt) -> None:
        if self._timer:
            self._timer.cancel()
        made, attempt.running, attempt.made = attempt.made, None, None
        if attempt.given_up is not None:
            self._go_on()
        elif made is None or isinstance(made, Raised):
            self._fail(attempt.items, made or CANCELLED)
            self._go_on()
        else:
            self._settle(zip(attempt.items, made, strict=True))

    def _fail(self, items: list[Item], raised: Raised) -> None:
        if len(items) == 1:
            [item] = items
            log.error(f"Item {item.index} failed", item.work.job_id, raised.trace)
            item.settle(raised.outcome(item.index))
        else:
            log.error(f"A batch of {len(items)} items failed: trying its halves", items[0].work.job_id, raised.trace)
            half = len(items) // 2
            self._left += [items[half:], items[:half]]

    def _settle(self, pairs: "zip[tuple[Item, Made]]") -> None:
        """Settle a few items at a time, so that the first jobs are sent while the rest are settled."""
        some = list(islice(pairs, SETTLED_AT_ONCE))
        for item, made in some:
            if isinstance(made, Outcome):
                item.settle(made)
            else:
                self.task.finishers.run(partial(item.work.output.seal, item.index, made), item.settle)
        if len(some) == SETTLED_AT_ONCE:
            asyncio.get_running_loop().call_soon(self._settle, pairs)
        else:
            self._go_on()

    def _expire(self, attempt: Attempt) -> None:
        message = f"No result within {self.task.timeout:g} s per item (ITEM_TIMEOUT)."
        for item in attempt.items:
            item.settle(failure(item.index, "TimeoutError", message))
        self._give_up(attempt)

    def _give_up(self, attempt: Attempt) -> None:
        attempt.give_up()
        left, self._left = self._left[::-1], []
        self.gave_up(left)
