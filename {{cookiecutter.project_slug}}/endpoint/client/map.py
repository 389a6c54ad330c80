"""One long list over many jobs, and so over all of an endpoint's workers; stopped anywhere, it goes on from there."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from endpoint.client.client import Client
from endpoint.client.envelopes import Envelope
from endpoint.client.http import CallFailed
from endpoint.client.items import Items
from endpoint.client.job import Job, JobFailed
from endpoint.client.journal import Journal
from endpoint.client.shards import Frame, cut

TRIES = 3
"""How often in a row items are submitted without a result for any of them."""

Progress = Callable[[int, int], None]
"""Called with how many items are done, and how many there are."""


@dataclass(frozen=True)
class Summary:
    """What became of the list: ``items`` and ``failed`` are the whole list's, the rest is this run's.

    ``damaged`` lines of the journal could not be read: their items were asked for again.
    """

    items: int
    failed: int
    jobs: int
    seconds: float
    damaged: int


async def map_file(
    client: Client,
    source: BinaryIO,
    out: Path,
    *,
    job: Job,
    shard: int = 200,
    in_flight: int = 8,
    files: Path | None = None,
    keep_journal: bool = False,
    progress: Progress = lambda *_: None,
) -> Summary:
    """Put the items in ``source`` (JSON Lines) through the endpoint and write their envelopes to ``out``, in order.

    ``job`` is what each job asks for beside its items, at most ``shard`` of them; ``in_flight`` jobs are waited for at
    once. The files of results go into the folder ``files``, if one is given. What is done is in the journal beside
    ``out``: called again after whatever end, this goes on from there, and waits for the jobs that are still known. When
    all is done the journal goes, unless ``keep_journal``. An item's failure is a result. Raises ``CallFailed`` if the
    list or the journal cannot be used, a call fails or an answer cannot be read, ``JobFailed`` if a job fails again and
    again.
    """
    began = time.monotonic()
    frame = Frame(job)
    items = Items(source, frame.room)
    of = {"journal": 1, "items": items.digest, "job": hashlib.sha256(frame.body([])).hexdigest()}
    of |= {"files": str(files)} if files else {}
    with Journal(out, of, len(items)) as journal:
        mapping = _Mapping(client, items, frame, journal, shard, files, progress)
        try:
            await mapping.run(in_flight)
        except CallFailed as fault:
            fault.add_note(f"What is done is in {journal.path}: start again, and it goes on from there.")
            raise
        journal.write_output(keep=keep_journal)
        return Summary(len(items), journal.failed, mapping.jobs, time.monotonic() - began, journal.damaged)


class _Mapping:
    def __init__(
        self,
        client: Client,
        items: Items,
        frame: Frame,
        journal: Journal,
        shard: int,
        files: Path | None,
        progress: Progress,
    ) -> None:
        self.jobs = 0
        self._client = client
        self._items = items
        self._frame = frame
        self._journal = journal
        self._shard = shard
        self._files = files
        self._oversize: set[int] = set()
        self._progress = progress

    async def run(self, in_flight: int) -> None:
        """See every item into the journal. The first fault cancels what is in flight and is raised."""
        self._progress(self._journal.done, len(self._items))
        shards = self._shards()

        async def work() -> None:
            for indices, job_id in shards:
                await self._settle(indices, job_id)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(in_flight):
                    group.create_task(work())
        except ExceptionGroup as faults:
            raise faults.exceptions[0] from None

    def _shards(self) -> Iterator[tuple[list[int], str | None]]:
        """Yield what earlier runs left in flight with the job that has it, then all other items in shards."""
        left = self._journal.unfinished()
        claimed = {index for _, indices in left for index in indices}
        for job_id, indices in left:
            yield indices, job_id
        new = (index for index in range(len(self._items)) if index not in self._journal and index not in claimed)
        for indices in self._cut(new):
            yield indices, None

    def _cut(self, indices: Iterable[int]) -> Iterator[list[int]]:
        return cut(indices, self._items.size, lambda: self._shard, self._frame.room)

    async def _settle(self, indices: list[int], job_id: str | None = None) -> None:
        """See the items at ``indices`` into the journal, in as many jobs as it takes; ``job_id`` may have them."""
        tries = 0
        while indices:
            asked = job_id is None
            tries += asked
            fault = None
            crowded: set[int] = set()
            try:
                job_id = job_id or await self._submit(indices)
                crowded = await self._collect(job_id, indices, last=tries == TRIES)
            except JobFailed as failed:
                fault = failed
            left = [index for index in indices if index not in self._journal and index not in crowded]
            if len(left) < len(indices):
                tries = 0
            if fault and asked and (tries == TRIES or fault.state == "CANCELLED"):
                raise fault
            if crowded:
                await self._make_room(sorted(crowded), min(len(indices) - len(crowded), len(indices) // 2))
            indices, job_id = left, None

    async def _make_room(self, crowded: list[int], fitting: int) -> None:
        """Ask again for items whose results did not fit into a response, of which ``fitting`` did.

        Each is asked for alone until one fits. Those before it are too large for any response; from it on the shard
        was too full, and all shards are smaller from now on.
        """
        while crowded:
            index = crowded.pop(0)
            await self._settle([index])
            if index not in self._oversize:
                self._shard = min(self._shard, max(1, fitting))
                for smaller in self._cut(crowded):
                    await self._settle(smaller)
                return

    async def _submit(self, indices: list[int]) -> str:
        job_id = await self._client.submit(self._frame.body([self._items[index] for index in indices]))
        self._journal.submitted(job_id, indices)
        self.jobs += 1
        return job_id

    async def _collect(self, job_id: str, indices: list[int], *, last: bool) -> set[int]:
        """Journal a job's envelopes as they arrive; return which items' results did not fit into its response.

        A result that could not be fetched is no result yet, unless this is the ``last`` try.
        """
        crowded = set()

        async def place(envelope: Envelope) -> Envelope:
            envelope["index"] = indices[envelope["index"]]
            return await self._client.save_files(envelope, self._files) if self._files else envelope

        async with aclosing(self._client.results(job_id, len(indices), then=place)) as envelopes:
            async for envelope in envelopes:
                index = envelope["index"]
                kind = envelope["failure"]["type"] if "failure" in envelope else None
                if kind == "OutputTooLarge" and len(indices) > 1:
                    crowded.add(index)
                    continue
                if kind == "OutputTooLarge":
                    self._oversize.add(index)
                if kind != "ResultUnavailable" or last:
                    self._journal.record(envelope)
                    self._progress(self._journal.done, len(self._items))
        return crowded
