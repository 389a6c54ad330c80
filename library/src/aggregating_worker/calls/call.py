"""What goes on in one slot: items are tried together and, if that fails, by halves, until each has its outcome."""

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
"""Items of a call whose outcomes are handed on before the event loop has its turn."""

CANCELLED = Raised("CancelledError", "The call was cancelled by something else than the worker.", "")


@dataclass(eq=False)
class Call:
    """A slot in use, from the items it is given to ``ended``.

    A batch that raises is halved, and the halves are tried, until the guilty items are alone. Whatever the task does,
    each item is settled: by the call, by its time running out, or by nobody if its job is over.
    """

    task: TaskFunction
    ended: Callable[["Call"], None]
    gave_up: Callable[[list[list[Item]]], None]
    """Called with what is left to be tried, in other slots."""
    _left: list[list[Item]] = field(default_factory=list)
    _attempt: Attempt | None = None
    _timer: asyncio.TimerHandle | None = None

    @property
    def items(self) -> list[Item]:
        """What is being tried."""
        return self._attempt.items if self._attempt else []

    @property
    def given_up(self) -> float | None:
        """Since when nobody waits for what is being tried, in seconds of ``time.monotonic``."""
        return self._attempt.given_up if self._attempt else None

    def start(self, items: list[Item]) -> None:
        """Begin with ``items``."""
        self._left.append(items)
        self._go_on()

    def drop(self, work: Work) -> "asyncio.Task[None] | None":
        """Give up if nobody but ``work``, which is over, had items in what is being tried; return what is to end."""
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
        outcome, attempt.running, attempt.outcome = attempt.outcome, None, None
        if attempt.given_up is not None:
            self._go_on()
        elif outcome is None or isinstance(outcome, Raised):
            self._fail(attempt.items, outcome or CANCELLED)
            self._go_on()
        else:
            self._settle(zip(attempt.items, outcome, strict=True))

    def _fail(self, items: list[Item], raised: Raised) -> None:
        if len(items) == 1:
            [item] = items
            log.error(f"Item {item.number} failed", item.work.job_id, raised.trace)
            item.settle(raised.envelope(item.number))
        else:
            log.error(f"A batch of {len(items)} failed; now its halves", items[0].work.job_id, raised.trace)
            half = len(items) // 2
            self._left += [items[half:], items[:half]]

    def _settle(self, outcomes: "zip[tuple[Item, Made]]") -> None:
        """Settle some items, and then others: the jobs of the first are on their way out while the others follow."""
        some = list(islice(outcomes, SETTLED_AT_ONCE))
        for item, made in some:
            if isinstance(made, Outcome):
                item.settle(made)
            else:
                self.task.finishers.run(partial(item.work.output.seal, item.number, made), item.settle)
        if len(some) == SETTLED_AT_ONCE:
            asyncio.get_running_loop().call_soon(self._settle, outcomes)
        else:
            self._go_on()

    def _expire(self, attempt: Attempt) -> None:
        message = f"No result within {self.task.timeout:g} s per item (ITEM_TIMEOUT)."
        for item in attempt.items:
            item.settle(failure(item.number, "TimeoutError", message))
        self._give_up(attempt)

    def _give_up(self, attempt: Attempt) -> None:
        attempt.give_up()
        left, self._left = self._left[::-1], []
        self.gave_up(left)
