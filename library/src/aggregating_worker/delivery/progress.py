"""Posts how far a job's items are, for ``/status``: at most once a second, and never after the final body."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aggregating_worker import log

EVERY = 1.0
"""Seconds between the end of one POST and the next."""

SendProgress = Callable[[str, bytes], Awaitable[bool]]
"""Posts a job's progress, given its id and the encoded list; returns whether the platform has taken it."""


@dataclass(eq=False)
class Progress:
    """The latest of each of the job's running items."""

    job_id: str
    send: SendProgress
    _values: dict[int, bytes] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _on_its_way: asyncio.Lock = field(default_factory=asyncio.Lock)
    _posting: "asyncio.Task[None] | None" = None
    _over: bool = False

    def tell(self, index: int, value: bytes) -> None:
        """Show ``value``, encoded, for the item at ``index``."""
        self._values[index] = value
        self._changed.set()
        if not (self._posting or self._over):
            self._posting = asyncio.create_task(self._post())

    def drop(self, index: int) -> None:
        """Show nothing for the item at ``index`` any more."""
        if self._values.pop(index, None) is not None:
            self._changed.set()

    async def end(self) -> None:
        """Return once no POST is under way, and none will be: what is on its way has the rest of its time."""
        async with self._on_its_way:
            self.stop()

    def stop(self) -> None:
        """Post nothing more."""
        self._over = True
        if self._posting:
            self._posting.cancel()

    async def _post(self) -> None:
        told = False
        while await self._changed.wait():
            self._changed.clear()
            entries = (b'{"index": %d, "value": %b}' % each for each in sorted(self._values.items()))
            async with self._on_its_way:
                taken = await self.send(self.job_id, b"[%b]" % b", ".join(entries))
            if not (taken or told):
                log.warning("The platform does not take the progress of this job.", self.job_id)
            told |= not taken
            await asyncio.sleep(EVERY)
