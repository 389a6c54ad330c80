"""A long list put through Batch Jobs: its shards are requests, in as few batches as the limits allow.

It works in rounds: items whose request was lost are requested again in the next round, and those whose request failed
by halves, until those to blame are alone.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, suppress
from functools import partial
from itertools import accumulate, chain, groupby, islice
from typing import Any, TypeVar

from aggregating_worker.client.batch import MAX_BATCHES, MAX_REQUESTS, BatchState
from aggregating_worker.client.envelopes import Envelope
from aggregating_worker.client.http import CallFailed
from aggregating_worker.client.job import FINAL, AnotherWorker, JobFailed, checked, output
from aggregating_worker.client.long_list import ALONE, REFUSED, TRIES, LongList, all_of
from aggregating_worker.client.shards import cut
from aggregating_worker.sentence import counted

NUMBERED_FROM = 1
"""The ``first_index`` of a batch's first item. Not 0: a worker that ignores ``first_index`` counts from 0, and this
shows it."""
PAUSES = (0.2, 10.0)
"""Seconds between two questions about a batch: a tenth of its age, but within these."""
ROOM_PAUSE = 10.0
"""Seconds between two questions whether there is room for another batch."""

T = TypeVar("T")


class BatchedJobs:
    """Puts a list through requests of at most ``shard`` items; ``count`` were submitted.

    A batch that makes no progress for ``patience`` seconds is cancelled, and room for a new one is waited for as long.
    """

    def __init__(self, long_list: LongList, shard: int, patience: float) -> None:
        self.count = 0
        self._list = long_list
        self._batches = long_list.client.batches
        self._shard = shard
        self._patience = patience
        self._most = dict[int, int]()
        """How many items may be in a request with this one, where that failed or was crowded with more."""
        self._crowded = set[int]()
        """Items whose results did not fit beside others."""
        self._refused = Counter[int]()
        """How many requests with this item failed."""
        self._claimed = set[int]()
        """Items that batches of earlier runs have."""
        self._states = dict[str, BatchState]()
        self._fault: CallFailed | None = None

    async def run(self) -> None:
        """Get an envelope of every item into the journal. If it is interrupted, the batches go on without it."""
        journal, tries = self._list.journal, 0
        left = await self._left()
        self._claimed.update(chain.from_iterable(indices for _, indices in left))
        self._list.show()
        while any(True for _ in self._list.missing()):
            tries += not left
            done, smaller = journal.done, self._refused.total()
            batches = chain(((batch.id, [indices]) for batch, indices in left), self._shards())
            await all_of(self._see_to(batches, last=tries == TRIES) for _ in range(MAX_BATCHES))
            if journal.done > done or self._refused.total() > smaller:
                tries = 0
            elif tries == TRIES:
                raise self._fault or CallFailed(f"The items were requested {TRIES} times, and no result came.")
            left, self._claimed = [], set()
        self._list.judge()

    async def cancel(self) -> int:
        """Cancel the batches that earlier runs left running; return their number."""
        running = [batch for batch, _ in await self._left() if not batch.ended]
        for batch in running:
            await self._batches.cancel(batch.id)
        return len(running)

    async def _left(self) -> list[tuple[BatchState, list[int]]]:
        """Return the batches of earlier runs that may still bring results, with the indices of their items.

        Drafts among them are cancelled, because nothing in them has run. A draft whose id did not reach the journal
        stays where it is: it runs nothing and costs nothing.
        """
        left = []
        for batch_id, indices in self._list.journal.unfinished():
            try:
                batch = await self._batches.state(batch_id)
            except CallFailed as error:
                if error.status != 404:
                    raise
                continue
            if batch.status == "DRAFT":
                await self._batches.cancel(batch_id)
            else:
                left.append((batch, indices))
        return left

    def _shards(self) -> Iterator[tuple[None, list[list[int]]]]:
        """Yield the items that no batch has, in shards, as many together as fit into a batch.

        If some have failed, and none was ever accepted, only a few of them: the fault may be in every request.
        """
        room, size = self._list.frame.room, self._list.items.size
        free = (index for index in self._list.missing() if index not in self._claimed)
        shards: Iterator[list[int]] = (
            shard
            for most, group in groupby(free, lambda index: self._most.get(index, self._shard))
            for shard in cut(group, size, lambda most=most: most, room)  # type: ignore[misc]
        )
        if self._refused and not self._list.journal.accepted:
            shards = islice(shards, ALONE)
        while together := list(islice(shards, MAX_REQUESTS)):
            yield None, together

    async def _see_to(self, batches: Iterator[tuple[str | None, list[list[int]]]], *, last: bool) -> None:
        for batch_id, shards in batches:
            asked = batch_id is None
            try:
                if batch_id is None:
                    batch_id = await self._submit(shards)
                    self.count += len(shards)
                faults = await self._follow(batch_id, [*chain.from_iterable(shards)], last=last)
            except CallFailed as error:
                if error.status != 404:
                    raise
                self._fault = error  # the endpoint has forgotten the batch
                continue
            if asked and faults:
                self._halve(shards, faults)

    def _halve(self, shards: list[list[int]], faults: list[JobFailed]) -> None:
        """Have the shards that failed be asked for by halves, and items fail that failed in company and then alone.

        What was alone from the start has ``TRIES``. A batch does not say which of its requests failed: those that
        brought nothing, if they are as many.
        """
        failed = [
            shard
            for shard in shards
            if not any(index in self._list.journal or (shard[1:] and index in self._crowded) for index in shard)
        ]
        if len(failed) != len(faults):
            return
        words = dict.fromkeys(fault.reason for fault in faults)
        fault = faults[0] if len(words) == 1 else JobFailed("of the batch", "FAILED", " | ".join(words))
        for shard in failed:
            self._refused.update(shard)
            if len(shard) > 1:
                self._most.update(dict.fromkeys(shard, len(shard) // 2))
            elif shard[0] in self._most or self._refused[shard[0]] == TRIES:
                self._list.refuse(shard[0], fault)

    async def _submit(self, shards: list[list[int]]) -> str:
        """Start a batch of ``shards`` and return its id.

        A call is made again if its answer is lost, so the draft may have got some requests twice, and each would be
        paid for: it is started only if it has as many as it should, and otherwise another is made.
        """
        for _ in range(TRIES):
            batch_id = await self._with_room(self._batches.create)
            self._list.journal.submitted(batch_id, [*chain.from_iterable(shards)])
            firsts = accumulate(map(len, shards), initial=NUMBERED_FROM)
            requests = (self._list.body(shard, first) for shard, first in zip(shards, firsts, strict=False))
            await self._batches.add(batch_id, requests)
            if (await self._batches.state(batch_id)).total == len(shards):
                await self._with_room(partial(self._batches.finalize, batch_id))
                return batch_id
            with suppress(CallFailed):
                await self._batches.cancel(batch_id)
        raise CallFailed(
            f"{TRIES} times in a row, a new batch did not have the requests that were added to it: try again later."
        )

    async def _with_room(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return what ``call`` returns; while the endpoint has too many batches (429), wait and call again."""
        until = time.monotonic() + self._patience
        while True:
            try:
                return await call()
            except CallFailed as error:
                if error.status != 429 or time.monotonic() > until:
                    raise
            await asyncio.sleep(ROOM_PAUSE)

    async def _follow(self, batch_id: str, indices: list[int], *, last: bool) -> list[JobFailed]:
        """Journal the results of a batch until it has ended, or does not even end after it was cancelled.

        Return how requests failed for which an item may be to blame.
        """
        seen: dict[str, JobFailed | None] = {}
        began = moved = time.monotonic()
        before, listed, cancelled = None, 0, False
        while not (batch := await self._batches.state(batch_id)).ended:
            now = time.monotonic()
            if batch != before:
                before, moved = batch, now
            self._show(batch)
            if batch.done >= max(1, 2 * listed):  # a listing has everything that the one before had, so they are few
                listed = batch.done
                await self._collect(batch_id, indices, seen, last=last)
            if now - moved > self._patience:
                if cancelled:
                    break
                await self._batches.cancel(batch_id)
                cancelled, moved = True, now
            least, most = PAUSES
            await asyncio.sleep(min(most, max(least, (now - began) / 10)))
        self._show(batch)
        for _ in range(TRIES):  # a list that changes while its pages are read may leave some out
            await self._collect(batch_id, indices, seen, last=last)
            if len(seen) >= batch.done:
                break
        return [fault for fault in seen.values() if fault and fault.state in REFUSED]

    async def _collect(
        self, batch_id: str, indices: list[int], seen: dict[str, JobFailed | None], *, last: bool
    ) -> None:
        async with aclosing(self._batches.requests(batch_id)) as requests:
            async for request in requests:
                if request.get("status") in FINAL and checked(request)["id"] not in seen:
                    try:
                        seen[request["id"]] = None
                        await self._take(request, indices, last=last)
                    except JobFailed as fault:
                        seen[request["id"]] = self._fault = fault

    async def _take(self, request: dict[str, Any], indices: list[int], *, last: bool) -> None:
        """Journal the envelopes of a request; their indices are the places of their items in the batch."""
        envelopes = output(request, None, None)
        places = range(NUMBERED_FROM, NUMBERED_FROM + len(indices))
        if not envelopes or envelopes[0]["index"] not in places or envelopes[-1]["index"] not in places:
            raise AnotherWorker(request["id"], "its results are not numbered from its first_index")

        async def place(envelope: Envelope) -> Envelope:
            envelope["index"] = indices[envelope["index"] - NUMBERED_FROM]
            return await self._list.save(envelope)

        journal = self._list.journal
        new = [envelope for envelope in envelopes if indices[envelope["index"] - NUMBERED_FROM] not in journal]
        async with aclosing(self._list.client.fetched(new, place)) as arriving:
            async for envelope in arriving:
                if len(envelopes) > 1 and self._list.crowded(envelope):
                    self._most[envelope["index"]] = 1
                    self._crowded.add(envelope["index"])
                else:
                    self._list.record(envelope, last=last)

    def _show(self, batch: BatchState) -> None:
        self._states[batch.id] = batch
        states = self._states.values()
        done, total = sum(each.done for each in states), sum(each.total for each in states)
        self._list.show(f"{done} of {counted(total, 'request')}")
