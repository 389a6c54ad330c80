"""Whose items come next: jobs take turns, and those with equal options share a call."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from aggregating_worker.calls.work import Item, Work


@dataclass(eq=False)
class Group:
    """Jobs whose items may share a call: those with items that could start, in the order of their turns."""

    turns: deque[Work] = field(default_factory=deque)

    @property
    def waiting(self) -> int:
        """How many items could start now."""
        return sum(work.startable for work in self.turns)

    @property
    def since(self) -> float:
        """When the job that has waited longest began to, in seconds of the event loop's clock."""
        return min(work.waits_since for work in self.turns)

    def draw(self, most: int) -> list[Item]:
        """Start up to ``most`` items, one of each job in turn."""
        items: list[Item] = []
        while self.turns and len(items) < most:
            work = self.turns.popleft()
            if work.startable:
                items.append(work.start())
            work.in_turn = bool(work.startable)
            if work.in_turn:
                self.turns.append(work)
        return items


class Turns:
    """The jobs with items that could start: a queue of groups, which take turns, too."""

    def __init__(self) -> None:
        self._groups: dict[bytes, Group] = {}

    def __bool__(self) -> bool:
        return bool(self._groups)

    @property
    def waiting(self) -> int:
        """How many items could start now."""
        return sum(group.waiting for group in self._groups.values())

    @property
    def jobs(self) -> list[Work]:
        """The jobs that wait for their turn."""
        return [work for group in self._groups.values() for work in group.turns]

    def enter(self, work: Work) -> None:
        """Put a job in the queue for its turn, if it has items that could start."""
        if work.startable and not work.in_turn:
            self._groups.setdefault(work.group, Group()).turns.append(work)
            work.in_turn = True
            work.waits_since = time.monotonic()

    def draw(self, most: int, held: Callable[[Group], bool]) -> list[Item]:
        """Start up to ``most`` items of the next group that is not ``held``; none if there is no such group."""
        for options, group in list(self._groups.items()):
            if group.waiting and held(group):
                continue
            items = group.draw(most)
            del self._groups[options]
            if group.turns:
                self._groups[options] = group  # behind the others
            if items:
                return items
        return []
