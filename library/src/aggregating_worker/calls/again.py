"""Calls that are tried again: by halves, until the items that make them fail are alone."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from aggregating_worker.calls.work import Item
from aggregating_worker.outcome.result import Raised


@dataclass(eq=False)
class Halves:
    """The two halves of a call that failed, of which ``left`` are still to be tried."""

    left: int = 2
    failed: "list[tuple[Sequence[Item], str]]" = field(default_factory=list)
    """The items and the type of failure of those that have failed, too."""


@dataclass(eq=False)
class Call:
    """Items to be tried together."""

    items: Sequence[Item]
    half_of: Halves | None = None
    deaths: int = 0
    """How often a process has ended with these items in hand."""
    overdue: bool = False
    """Whether its time was over when its process ended."""


class Again(deque[Call]):
    """The calls that are to be tried again, before other items."""

    def fail(self, call: Call, raised: Raised, tried: int) -> None:
        """Fail a call's only item, or have its halves tried; ``tried`` is how many items it had when it began."""
        first = call.items[0]
        if len(call.items) == 1:
            if tried == 1:
                first.fail_as(raised)
            else:  # the others have their outcomes, or their jobs are over: it may have been one of these
                self.appendleft(Call(call.items))
            self.resolve(call)
            return
        first.log(f"A batch of {len(call.items)} items failed: trying its halves", raised.trace or raised.message)
        if call.half_of:
            self.resolve(call, raised.kind)
        else:
            self._split(call.items)

    def resolve(self, call: Call, failed: str = "") -> None:
        """Take note of what became of a half: when both have failed alike, their items are tried one by one."""
        if not (halves := call.half_of):
            return
        halves.left -= 1
        if failed:
            halves.failed.append((call.items, failed))
        if halves.left:
            return
        if len(halves.failed) == 2 and len({kind for _, kind in halves.failed}) == 1:
            self.extendleft(Call([item]) for items, _ in halves.failed[::-1] for item in items[::-1])
        else:
            for items, _ in halves.failed[::-1]:
                self._split(items)

    def _split(self, items: Sequence[Item]) -> None:
        half, halves = len(items) // 2, Halves()
        self.extendleft((Call(items[half:], halves), Call(items[:half], halves)))


def suspects(calls: Sequence[Call]) -> list[list[Call]]:
    """Return halves of several calls, or of one of several items: what is in each is to be tried side by side."""
    if half := len(calls) // 2:
        return [[*calls[:half]], [*calls[half:]]]
    [call] = calls
    if not (half := len(call.items) // 2):
        return [[call]]
    return [[Call(items, deaths=call.deaths)] for items in (call.items[:half], call.items[half:])]
