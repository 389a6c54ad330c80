"""A long list on its way through an endpoint: its items, what is done of them, and where the results go."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from aggregating_worker.client.client import Client
from aggregating_worker.client.envelopes import Envelope, failure
from aggregating_worker.client.http import CallFailed
from aggregating_worker.client.items import Items
from aggregating_worker.client.job import JobFailed
from aggregating_worker.client.journal import Journal
from aggregating_worker.client.shards import Frame

TRIES = 3
"""How often in a row items are submitted without a result for any of them."""
ALONE = 10
"""How many items may be refused alone before any other was accepted."""
REFUSED = ("FAILED", "TIMED_OUT")
"""States of a job that one of its items may be to blame for."""

Progress = Callable[[int, int, str], None]
"""Called with the number of items done, the number of all items, and a note to show beside them."""


@dataclass(frozen=True)
class LongList:
    """What ``map`` puts through the endpoint, in jobs or in Batch Jobs."""

    client: Client
    items: Items
    frame: Frame
    journal: Journal
    files: Path | None
    progress: Progress
    refused: dict[int, JobFailed] = field(default_factory=dict)
    """How the jobs failed of items that were alone in them; they fail, too, once another item was accepted."""

    def missing(self) -> Iterator[int]:
        """Yield the indices of the items that have no envelope yet, and may have one."""
        unknown = self.journal.unknown()
        return (
            index
            for index in range(len(self.items))
            if not (index in self.journal or index in unknown or index in self.refused)
        )

    def body(self, indices: Iterable[int], first: int | None = None) -> bytes:
        """Return a request for the items at ``indices``, with ``first`` as its ``first_index``."""
        return self.frame.body([self.items[index] for index in indices], first)

    async def save(self, envelope: Envelope) -> Envelope:
        """Save the envelope's files if there is a folder for them; its index must be the one in the whole list."""
        if self.files is None or envelope["index"] in self.journal:
            return envelope
        return await self.client.save_files(envelope, self.files)

    @staticmethod
    def crowded(envelope: Envelope) -> bool:
        """Whether the item's result did not fit into its job's response."""
        return "failure" in envelope and envelope["failure"]["type"] == "OutputTooLarge"

    def record(self, envelope: Envelope, *, last: bool) -> None:
        """Journal an envelope; if its result could not be fetched, only at the ``last`` try."""
        if last or "failure" not in envelope or envelope["failure"]["type"] != "ResultUnavailable":
            self.journal.record(envelope)
            self.show()

    def refuse(self, index: int, fault: JobFailed) -> None:
        """Have an item fail whose job failed, though it was alone in it.

        If the endpoint has accepted no item at all, the fault may be in every job: then ``CallFailed`` is raised.
        """
        self.refused[index] = fault
        if self.journal.accepted or len(self.refused) == ALONE:
            self.judge()

    def judge(self) -> None:
        """Let the items that were refused fail, if they are to blame."""
        if self.refused and not self.journal.accepted:
            raise CallFailed(
                f"The endpoint has accepted nothing of the list, not even {self.items.named(self.refused)}, each in a "
                f"job of its own. {[*self.refused.values()][-1]}"
            )
        for index, fault in self.refused.items():
            late = "The job ran out of time: " if fault.state == "TIMED_OUT" else ""
            self.journal.record(failure(index, "JobFailed", f"{late}{fault.reason}"))
        self.refused.clear()
        self.show()

    def show(self, note: str = "") -> None:
        """Report the progress."""
        self.progress(self.journal.done, len(self.items), note)


async def all_of(tasks: Iterable[Coroutine[None, None, None]]) -> None:
    """Run ``tasks`` side by side; the first error cancels the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for task in tasks:
                group.create_task(task)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
