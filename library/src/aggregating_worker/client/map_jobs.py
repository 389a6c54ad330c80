"""A long list over many jobs at once: what did not come of one is asked for in another."""

from collections.abc import Iterable, Iterator
from contextlib import aclosing

from aggregating_worker.client.envelopes import Envelope
from aggregating_worker.client.job import JobFailed
from aggregating_worker.client.shards import cut
from aggregating_worker.client.work import TRIES, Work, all_of


class Jobs:
    """Does ``work`` in jobs of at most ``shard`` items; ``count`` is how many were submitted."""

    def __init__(self, work: Work, shard: int) -> None:
        self.count = 0
        self._work = work
        self._shard = shard
        self._oversize: set[int] = set()

    async def run(self, in_flight: int) -> None:
        """See every item into the journal, with so many jobs at once. The first fault cancels them and is raised."""
        self._work.show()
        shards = self._shards()

        async def settle() -> None:
            for indices, job_id in shards:
                await self._settle(indices, job_id)

        await all_of(settle() for _ in range(in_flight))

    def _shards(self) -> Iterator[tuple[list[int], str | None]]:
        """Yield what earlier runs left in flight with the job that has it, then all other items in shards."""
        left = self._work.journal.unfinished()
        claimed = {index for _, indices in left for index in indices}
        for job_id, indices in left:
            yield indices, job_id
        for indices in self._cut(index for index in self._work.missing() if index not in claimed):
            yield indices, None

    def _cut(self, indices: Iterable[int]) -> Iterator[list[int]]:
        return cut(indices, self._work.items.size, lambda: self._shard, self._work.frame.room)

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
            left = [index for index in indices if index not in self._work.journal and index not in crowded]
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
        job_id = await self._work.client.submit(self._work.body(indices))
        self._work.journal.submitted(job_id, indices)
        self.count += 1
        return job_id

    async def _collect(self, job_id: str, indices: list[int], *, last: bool) -> set[int]:
        """Journal a job's envelopes as they arrive; return which items' results did not fit into its response.

        A result that could not be fetched is no result yet, unless this is the ``last`` try.
        """
        crowded = set[int]()

        async def place(envelope: Envelope) -> Envelope:
            envelope["index"] = indices[envelope["index"]]
            return await self._work.save(envelope)

        async with aclosing(self._work.client.results(job_id, len(indices), then=place)) as envelopes:
            async for envelope in envelopes:
                if self._work.crowded(envelope):
                    (crowded if len(indices) > 1 else self._oversize).add(envelope["index"])
                if envelope["index"] not in crowded:
                    self._work.record(envelope, last=last)
        return crowded
