"""Posts the parts of items to the stream while the items run."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from aggregating_worker import log
from aggregating_worker.outcome.overflow import CHUNK_BYTES, Output

MOST_WAITING = CHUNK_BYTES - 1_000
"""Bytes of a job's parts that may wait to be posted; less than a chunk may have."""

Send = Callable[[Output, str, int, Sequence[bytes]], Awaitable[None]]
"""Posts parts, given the job's response and id, the item's index and its encoded parts."""


@dataclass(eq=False)
class PartStream:
    """The parts of a job's items. An item's are posted in order; those that come during a POST go with the next."""

    job_id: str
    send: Callable[[str, int, Sequence[bytes]], Awaitable[None]]
    posted: Callable[[], None]
    """Called when no part of an item waits any more."""
    posting: dict[int, "asyncio.Task[None]"] = field(default_factory=dict)
    """The asyncio task that posts an item's parts, by index, while there are any."""
    _waiting: dict[int, list[bytes]] = field(default_factory=dict)
    _bytes: int = 0
    _dropped: bool = False

    def add(self, index: int, part: bytes) -> None:
        """Post a part of the item at ``index``, or drop it if too many bytes wait for a slow network."""
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
