"""The parts of items on their way to the stream, while the items run."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from worker import log
from worker.outcome.overflow import CHUNK_BYTES, Output

MOST_WAITING = CHUNK_BYTES - 1_000
"""Bytes of a job's parts that may wait to be posted: less than a chunk."""

MOST_UNTAKEN = 1_000
"""Things that a thread may be ahead of the event loop."""

Send = Callable[[Output, str, int, Sequence[bytes]], Awaitable[None]]
"""Posts parts: the job's response and id, the item's index, and the parts, encoded."""


@dataclass(eq=False)
class Parts:
    """The parts of a job's items. Those of an item are posted in order, what came during one POST in the next."""

    job_id: str
    send: Callable[[str, int, Sequence[bytes]], Awaitable[None]]
    posted: Callable[[], None]
    """Called when the last part of an item is posted."""
    posting: dict[int, "asyncio.Task[None]"] = field(default_factory=dict)
    """What posts an item's parts, while there are any."""
    _waiting: dict[int, list[bytes]] = field(default_factory=dict)
    _bytes: int = 0
    _dropped: bool = False

    def add(self, index: int, part: bytes) -> None:
        """Post a part of the item at ``index``; where too much waits for a slow network, drop it from the stream."""
        if self._bytes + len(part) > MOST_WAITING:
            if not self._dropped:
                log.warning("Parts come faster than the platform takes them: some are not on the stream.", self.job_id)
            self._dropped = True
            return
        self._bytes += len(part) + len(", ")
        self._waiting.setdefault(index, []).append(part)
        if index not in self.posting:
            self.posting[index] = asyncio.create_task(self._post(index))

    async def _post(self, index: int) -> None:
        try:
            while parts := self._waiting.pop(index, None):
                self._bytes -= sum(len(part) + len(", ") for part in parts)
                await self.send(self.job_id, index, parts)
        finally:
            del self.posting[index]
            self.posted()


class Inbox:
    """What a thread hands to the event loop, in order: any number of things for each time the loop is woken."""

    def __init__(self, take: Callable[[Any], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._take = take
        self._things: deque[Any] = deque()
        self._told = False

    def put(self, thing: Any) -> None:
        """Have ``take`` called with ``thing`` on the event loop. Raises ``RuntimeError`` if that is closed."""
        while len(self._things) >= MOST_UNTAKEN and not self._loop.is_closed():
            time.sleep(0.001)  # the loop has other things to do, too
        self._things.append(thing)
        if not self._told:
            self._told = True
            self._loop.call_soon_threadsafe(self.empty)

    def empty(self) -> None:
        """Hand over what is there, and not what comes meanwhile; on the event loop."""
        self._told = False
        for _ in range(len(self._things)):
            self._take(self._things.popleft())
