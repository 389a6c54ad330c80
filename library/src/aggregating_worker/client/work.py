"""A long list on its way: its items, what is done of them, and where it goes."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from aggregating_worker.client.client import Client
from aggregating_worker.client.envelopes import Envelope
from aggregating_worker.client.items import Items
from aggregating_worker.client.journal import Journal
from aggregating_worker.client.shards import Frame

TRIES = 3
"""How often in a row items are submitted without a result for any of them."""

Progress = Callable[[int, int, str], None]
"""Called with how many items are done, how many there are, and what else there is to say."""


@dataclass(frozen=True)
class Work:
    """What ``map`` works on, in one way or the other."""

    client: Client
    items: Items
    frame: Frame
    journal: Journal
    files: Path | None
    progress: Progress

    def missing(self) -> Iterator[int]:
        """Yield the indices of the items that have no envelope yet."""
        return (index for index in range(len(self.items)) if index not in self.journal)

    def body(self, indices: Iterable[int], first: int | None = None) -> bytes:
        """Return a request for the items at ``indices``, whose envelopes are numbered from ``first``."""
        return self.frame.body([self.items[index] for index in indices], first)

    async def save(self, envelope: Envelope) -> Envelope:
        """Save the files of an envelope that has its index in the whole list, if there is a folder for them."""
        return await self.client.save_files(envelope, self.files) if self.files else envelope

    @staticmethod
    def crowded(envelope: Envelope) -> bool:
        """Whether an item's result did not fit into the response."""
        return "failure" in envelope and envelope["failure"]["type"] == "OutputTooLarge"

    def record(self, envelope: Envelope, *, last: bool) -> None:
        """Keep an envelope; of one whose result could not be fetched only at the ``last`` try."""
        if last or "failure" not in envelope or envelope["failure"]["type"] != "ResultUnavailable":
            self.journal.record(envelope)
            self.show()

    def show(self, note: str = "") -> None:
        """Say how far it is."""
        self.progress(self.journal.done, len(self.items), note)


async def all_of(tasks: Iterable[Coroutine[None, None, None]]) -> None:
    """Run ``tasks`` side by side; the first fault cancels the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for task in tasks:
                group.create_task(task)
    except ExceptionGroup as faults:
        raise faults.exceptions[0] from None
