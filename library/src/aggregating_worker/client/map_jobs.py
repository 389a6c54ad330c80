"""A long list put through many jobs at once; items that one job brought no result for go into another."""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import aclosing, suppress

from aggregating_worker.client.envelopes import Envelope
from aggregating_worker.client.http import CallFailed, JobUnknown
from aggregating_worker.client.job import AnotherWorker, JobFailed
from aggregating_worker.client.long_list import REFUSED, TRIES, LongList, all_of
from aggregating_worker.client.shards import cut
from aggregating_worker.sentence import counted


class Jobs:
    """Puts a list through jobs of at most ``shard`` items, ``in_flight`` at once; ``count`` were submitted."""

    def __init__(self, long_list: LongList, shard: int, in_flight: int) -> None:
        self.count = 0
        self._list = long_list
        self._shard = shard
        self._in_flight = in_flight
        self._oversize: set[int] = set()
        """Items whose results are too large for any response."""
        self._unknown = 0
        """How many submits in a row were lost."""

    async def run(self) -> None:
        """Get an envelope of every item into the journal. The first error cancels the jobs and is raised.

        A job of which it is not known whether the endpoint has it ends this only once the others are done.
        """
        self._list.show()
        shards = self._shards()

        async def settle() -> None:
            for indices, job_id in shards:
                await self._settle(indices, job_id)
                if self._unknown >= TRIES:  # a gateway that is down would make all of the list unknown
                    break

        await all_of(settle() for _ in range(self._in_flight))
        self._list.judge()
        if unknown := self._list.journal.unknown():
            raise CallFailed(
                f"It is not known whether the endpoint has {counted(len({*unknown.values()}), 'job')} with "
                f"{self._list.items.named(unknown)}: the answers got lost, so they were not sent again, which could "
                "pay for them twice. --again sends them."
            )

    def _shards(self) -> Iterator[tuple[list[int], str | None]]:
        """Yield the items that earlier runs left in jobs, with the job's id, then all other items in shards."""
        left = self._list.journal.unfinished()
        claimed = {index for _, indices in left for index in indices}
        for job_id, indices in left:
            yield indices, job_id
        for indices in self._cut(index for index in self._list.missing() if index not in claimed):
            yield indices, None

    def _cut(self, indices: Iterable[int]) -> Iterator[list[int]]:
        return cut(indices, self._list.items.size, lambda: self._shard, self._list.frame.room)

    async def _settle(self, indices: list[int], job_id: str | None = None, *, halved: bool = False) -> None:
        """Get the items at ``indices`` into the journal, in as many jobs as it takes; job ``job_id`` may have them.

        Items whose job was refused are asked for by halves, until those to blame are alone, and fail: at once if they
        are ``halved``, and were refused in company, too, else after ``TRIES``.
        """
        tries = 0
        while indices:
            asked = job_id is None
            tries += asked
            fault = None
            crowded: set[int] = set()
            try:
                job_id = job_id or await self._submit(indices)
                crowded = await self._collect(job_id, indices, last=tries == TRIES)
            except JobUnknown:
                self._unknown += 1
                self._list.journal.submitted(None, indices)
                return
            except JobFailed as failed:
                fault = failed
            except AnotherWorker as other:
                raise self._naming(other, indices) from None
            left = [index for index in indices if index not in self._list.journal and index not in crowded]
            if len(left) < len(indices):
                tries = 0
            if crowded:
                await self._make_room(sorted(crowded), min(len(indices) - len(crowded), len(indices) // 2))
            if fault and asked and left:
                if fault.state in REFUSED:
                    if len(left) > 1:
                        await self._settle(left[: len(left) // 2], halved=True)
                        await self._settle(left[len(left) // 2 :], halved=True)
                        return
                    if halved or tries == TRIES:
                        self._list.refuse(left[0], fault)
                        return
                elif tries == TRIES or fault.state == "CANCELLED":
                    raise self._naming(fault, left)
            indices, job_id = left, None

    def _naming(self, fault: CallFailed, indices: list[int]) -> CallFailed:
        fault.add_note(f"In that job: {self._list.items.named(index for index in indices if index >= 0)}.")
        return fault

    async def _make_room(self, crowded: list[int], fitting: int) -> None:
        """Submit again the items whose results did not fit into a response, where ``fitting`` others did.

        Each is submitted alone until the result of one fits. The ones before it are too large for any response. That
        one is not, so the shard had too many items: all shards are smaller from now on.
        """
        while crowded and self._unknown < TRIES:
            index = crowded.pop(0)
            await self._settle([index])
            if index in self._list.journal and index not in self._oversize:
                self._shard = min(self._shard, max(1, fitting))
                for smaller in self._cut(crowded):
                    await self._settle(smaller)
                return

    async def _submit(self, indices: list[int]) -> str:
        client, journal = self._list.client, self._list.journal
        try:
            job_id = await client.submit(self._list.body(indices))
        except asyncio.CancelledError as cancelled:
            if getattr(cancelled, "__notes__", ()):  # it may be queued all the same
                journal.submitted(None, indices)
            raise
        try:
            journal.submitted(job_id, indices)
        except OSError:  # nobody would know of it
            with suppress(CallFailed):
                await client.cancel(job_id)
            raise
        self._unknown = 0
        self.count += 1
        return job_id

    async def _collect(self, job_id: str, indices: list[int], *, last: bool) -> set[int]:
        """Journal a job's envelopes as they arrive; return the items whose results did not fit into its response.

        A result that could not be fetched is journaled as a failure at the ``last`` try only.
        """
        crowded = set[int]()

        async def place(envelope: Envelope) -> Envelope:
            envelope["index"] = indices[envelope["index"]]
            return await self._list.save(envelope)

        async with aclosing(self._list.client.results(job_id, len(indices), then=place)) as envelopes:
            async for envelope in envelopes:
                if envelope["index"] in self._list.journal:
                    continue
                if self._list.crowded(envelope):
                    (crowded if len(indices) > 1 else self._oversize).add(envelope["index"])
                if envelope["index"] not in crowded:
                    self._list.record(envelope, last=last)
        return crowded
