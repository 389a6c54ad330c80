"""A long list put through many jobs at once; items that one job brought no result for go into another."""

from collections.abc import Iterable, Iterator
from contextlib import aclosing

from aggregating_worker.client.envelopes import Envelope
from aggregating_worker.client.job import JobFailed
from aggregating_worker.client.long_list import TRIES, LongList, all_of
from aggregating_worker.client.shards import cut


class Jobs:
    """Puts a list through jobs of at most ``shard`` items, ``in_flight`` at once; ``count`` were submitted."""

    def __init__(self, long_list: LongList, shard: int, in_flight: int) -> None:
        self.count = 0
        self._list = long_list
        self._shard = shard
        self._in_flight = in_flight
        self._oversize: set[int] = set()
        """Items whose results are too large for any response."""

    async def run(self) -> None:
        """Get an envelope of every item into the journal. The first error cancels the jobs and is raised."""
        self._list.show()
        shards = self._shards()

        async def settle() -> None:
            for indices, job_id in shards:
                await self._settle(indices, job_id)

        await all_of(settle() for _ in range(self._in_flight))

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

    async def _settle(self, indices: list[int], job_id: str | None = None) -> None:
        """Get the items at ``indices`` into the journal, in as many jobs as it takes; job ``job_id`` may have them."""
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
            left = [index for index in indices if index not in self._list.journal and index not in crowded]
            if len(left) < len(indices):
                tries = 0
            if fault and asked and (tries == TRIES or fault.state == "CANCELLED"):
                raise fault
            if crowded:
                await self._make_room(sorted(crowded), min(len(indices) - len(crowded), len(indices) // 2))
            indices, job_id = left, None

    async def _make_room(self, crowded: list[int], fitting: int) -> None:
        """Submit again the items whose results did not fit into a response, where ``fitting`` others did.

        Each is submitted alone until the result of one fits. The ones before it are too large for any response. That
        one is not, so the shard had too many items: all shards are smaller from now on.
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
        job_id = await self._list.client.submit(self._list.body(indices))
        self._list.journal.submitted(job_id, indices)
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
                if self._list.crowded(envelope):
                    (crowded if len(indices) > 1 else self._oversize).add(envelope["index"])
                if envelope["index"] not in crowded:
                    self._list.record(envelope, last=last)
        return crowded
