"""A call that a process has in hand, as the worker sees it."""

import asyncio
import contextvars
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from aggregating_worker.outcome.result import Raised

TOO_LATE = 1.0
"""Seconds after which a timer that rings does not count."""


@dataclass(frozen=True, eq=False, slots=True)
class Shared:
    """A job's number, and what its calls have in common: a process is told once."""

    number: int
    payload: bytes


class Taker(Protocol):
    """An item, which takes what is made of it."""

    @property
    def index(self) -> int:
        """Its number in the envelope."""

    @property
    def shared(self) -> Shared:
        """What the calls for its job have in common."""

    def take(self, flags: int, pieces: list[bytes]) -> None:
        """Take the outcome, by ``wire.Flag`` and pieces."""

    def take_part(self, part: bytes) -> None:
        """Take a part, encoded."""

    def take_progress(self, value: bytes) -> None:
        """Take how far it is, encoded."""


T = TypeVar("T", bound=Taker)


@dataclass(eq=False)
class Attempt(Generic[T]):
    """One run of the task's function on ``items``, in a process."""

    number: int
    items: Sequence[T]
    context: contextvars.Context
    """Of its job, if it has only one."""
    deaths: int = 0
    """How often a process has ended with its items in hand."""
    left: set[int] = field(init=False)
    """The places of the items without an outcome."""
    raised: Raised | None = None
    over: bool = False
    """Whether the function has returned, or its process has ended."""
    cancelled: bool = False
    """Whether the function ended without outcomes or an exception: something has cancelled it before it began."""
    died: bool = False
    """Whether its process has ended with it in hand."""
    overdue: bool = False
    """Whether its time is over."""
    late: bool = False
    """Whether that is its own fault: its process answers."""
    unwanted: bool = False
    """Whether it was cancelled: it is late, or its jobs are over."""
    answered: bool = False
    """Whether its process has answered since it was asked."""
    _waiter: "asyncio.Future[None] | None" = None

    def __post_init__(self) -> None:
        self.left = {*range(len(self.items))}

    async def wait(self, seconds: float = math.inf, until: Callable[[], bool] = lambda: False) -> bool:
        """Wait until it is ``over``, or ``until`` is true; return whether that came before ``seconds`` had passed.

        A timer that rings much too late starts again: the worker was stopped meanwhile, and its processes perhaps, too.
        """
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        while not (self.over or until()):
            self._waiter = loop.create_future()
            timer = loop.call_at(due, self.wake) if due < math.inf else None
            try:
                await self._waiter
            finally:
                if timer:
                    timer.cancel()
            if not (self.over or until()) and (now := loop.time()) >= due:
                if now < due + TOO_LATE:
                    return False
                due = now + seconds
        return True

    def wake(self) -> None:
        """Have whoever waits look again."""
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)
