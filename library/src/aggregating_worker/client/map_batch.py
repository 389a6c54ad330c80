"""A long list through Batch Jobs: the shards are requests of as few batches as the limits allow, in rounds.

What a round leaves without a result, because a request failed or was lost, is asked for again in the next.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import aclosing
from itertools import chain, islice
from typing import Any

from aggregating_worker.client.batch import MAX_BATCHES, MAX_REQUESTS, Batch
from aggregating_worker.client.drafts import NUMBERED_FROM, Drafts
from aggregating_worker.client.envelopes import Envelope
from aggregating_worker.client.http import CallFailed
from aggregating_worker.client.job import FINAL, JobFailed, another_worker, checked, output
from aggregating_worker.client.shards import cut
from aggregating_worker.client.work import TRIES, Work, all_of

PAUSES = (0.2, 10.0)
"""Seconds between two questions about a batch: a tenth of its age, within these."""


class BatchedJobs:
    """Does ``work`` in requests of at most ``shard`` items; ``count`` is how many were submitted.

    A batch that has not moved for ``patience`` seconds is cancelled.
    """

    def __init__(self, work: Work, shard: int, patience: float) -> None:
        self.count = 0
        self._work = work
        self._batches = work.client.batches
        self._drafts = Drafts(work, patience)
        self._shard = shard
        self._patience = patience
        self._alone = set[int]()
        """Items whose results did not fit beside others."""
        self._claimed = set[int]()
        """Items that batches of earlier runs have."""
        self._states = dict[str, Batch]()
        self._fault: CallFailed | None = None

    async def run(self) -> None:
        """See every item into the journal. Whoever stops waiting leaves the batches as they are."""
        work, tries = self._work, 0
        left = await self._drafts.left()
        self._claimed.update(chain.from_iterable(indices for _, indices in left))
        await self._drafts.clear()
        work.show()
        while work.journal.done < len(work.items):
            tries += not left
            done = work.journal.done
            batches = chain(((batch.id, []) for batch, _ in left), ((None, shards) for shards in self._shards()))
            await all_of(self._see_to(batches, last=tries == TRIES) for _ in range(MAX_BATCHES))
            if work.journal.done > done:
                tries = 0
            elif tries == TRIES:
                raise self._fault or CallFailed("What was asked for three times has brought no result.")
            left, self._claimed = [], set()
        await self._drafts.clear()

    async def cancel(self) -> int:
        """Cancel what earlier runs have left running; return how many batches that is."""
        running = [batch for batch, _ in await self._drafts.left() if not batch.ended]
        for batch in running:
            await self._batches.cancel(batch.id)
        return len(running)

    def _shards(self) -> Iterator[list[list[int]]]:
        """Yield the items that no batch has, in shards, as many together as a batch takes."""
        room, size = self._work.frame.room, self._work.items.size
        shards = (shard for run in self._runs() for shard in cut(run, size, lambda: self._shard, room))
        while together := list(islice(shards, MAX_REQUESTS)):
            yield together

    def _runs(self) -> Iterator[list[int]]:
        """Yield the indices of those items in runs without a gap; of what needs a response of its own, each alone."""
        run: list[int] = []
        for index in self._work.missing():
            if index in self._claimed:
                continue
            if run and (index > run[-1] + 1 or index in self._alone or run[-1] in self._alone):
                yield run
                run = []
            run.append(index)
        if run:
            yield run

    async def _see_to(self, batches: Iterator[tuple[str | None, list[list[int]]]], *, last: bool) -> None:
        for batch_id, shards in batches:
            try:
                if batch_id is None:
                    batch_id = await self._drafts.submit(shards)
                    self.count += len(shards)
                await self._follow(batch_id, last=last)
            except CallFailed as error:
                if error.status != 404:
                    raise
                self._fault = error  # the endpoint has forgotten the batch

    async def _follow(self, batch_id: str, *, last: bool) -> None:
        """Journal what comes of a batch until it has ended, or has not moved for too long and does not end either."""
        seen = set[str]()
        began = moved = time.monotonic()
        before, listed, cancelled = None, 0, False
        while not (batch := await self._batches.state(batch_id)).ended:
            now = time.monotonic()
            if batch != before:
                before, moved = batch, now
            self._show(batch)
            if batch.done >= max(1, 2 * listed):  # each listing has all that the one before had
                listed = batch.done
                await self._collect(batch_id, seen, last=last)
            if now - moved > self._patience:
                if cancelled:
                    break
                await self._batches.cancel(batch_id)
                cancelled, moved = True, now
            least, most = PAUSES
            await asyncio.sleep(min(most, max(least, (now - began) / 10)))
        self._show(batch)
        for _ in range(TRIES):  # a list that changes while it is read may leave some out
            await self._collect(batch_id, seen, last=last)
            if len(seen) >= batch.done:
                break

    async def _collect(self, batch_id: str, seen: set[str], *, last: bool) -> None:
        async with aclosing(self._batches.requests(batch_id)) as requests:
            async for request in requests:
                if request.get("status") in FINAL and checked(request)["id"] not in seen:
                    seen.add(request["id"])
                    await self._take(request, last=last)

    async def _take(self, request: dict[str, Any], *, last: bool) -> None:
        """Journal the envelopes of a request, whose results belong where their numbers say."""
        try:
            envelopes = output(request, None, None)
        except JobFailed as fault:
            self._fault = fault
            return
        places = range(NUMBERED_FROM, NUMBERED_FROM + len(self._work.items))
        if not envelopes or envelopes[0]["index"] not in places or envelopes[-1]["index"] not in places:
            raise another_worker(request["id"], "its results are not numbered from its first_index")

        async def place(envelope: Envelope) -> Envelope:
            envelope["index"] -= NUMBERED_FROM
            return await self._work.save(envelope)

        new = [envelope for envelope in envelopes if envelope["index"] - NUMBERED_FROM not in self._work.journal]
        async with aclosing(self._work.client.fetched(new, place)) as arriving:
            async for envelope in arriving:
                if len(envelopes) > 1 and self._work.crowded(envelope):
                    self._alone.add(envelope["index"])
                else:
                    self._work.record(envelope, last=last)

    def _show(self, batch: Batch) -> None:
        self._states[batch.id] = batch
        states = self._states.values()
        done, total = sum(each.done for each in states), sum(each.total for each in states)
        self._work.show(f"{done} of {total} requests")
