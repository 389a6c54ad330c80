"""A long list put through Batch Jobs: its shards are requests, in as few batches as the limits allow.

It works in rounds: items whose request failed or was lost are requested again in the next round.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, suppress
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

from aggregating_worker.client.batch import MAX_BATCHES, MAX_REQUESTS, BatchState
from aggregating_worker.client.envelopes import Envelope
from aggregating_worker.client.http import CallFailed
from aggregating_worker.client.job import FINAL, AnotherWorker, JobFailed, checked, output
from aggregating_worker.client.long_list import TRIES, LongList, all_of
from aggregating_worker.client.shards import cut
from aggregating_worker.sentence import counted

NUMBERED_FROM = 1
"""The ``first_index`` of the list's first item. Not 0: a worker that ignores ``first_index`` counts from 0, and this
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
        self._alone = set[int]()
        """Items whose results did not fit beside others."""
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
        while journal.done < len(self._list.items):
            tries += not left
            done = journal.done
            batches = chain(((batch.id, []) for batch, _ in left), ((None, shards) for shards in self._shards()))
            await all_of(self._see_to(batches, last=tries == TRIES) for _ in range(MAX_BATCHES))
            if journal.done > done:
                tries = 0
            elif tries == TRIES:
                raise self._fault or CallFailed(f"The items were requested {TRIES} times, and no result came.")
            left, self._claimed = [], set()

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

    def _shards(self) -> Iterator[list[list[int]]]:
        """Yield the items that no batch has, in shards, as many together as fit into a batch."""
        room, size = self._list.frame.room, self._list.items.size
        shards = (shard for run in self._runs() for shard in cut(run, size, lambda: self._shard, room))
        while together := list(islice(shards, MAX_REQUESTS)):
            yield together

    def _runs(self) -> Iterator[list[int]]:
        """Yield the indices of those items in runs without a gap; items that need a response to themselves, alone."""
        run: list[int] = []
        for index in self._list.missing():
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
                    batch_id = await self._submit(shards)
                    self.count += len(shards)
                await self._follow(batch_id, last=last)
            except CallFailed as error:
                if error.status != 404:
                    raise
                self._fault = error  # the endpoint has forgotten the batch

    async def _submit(self, shards: list[list[int]]) -> str:
        """Start a batch of ``shards`` and return its id.

        A call is made again if its answer is lost, so the draft may have got some requests twice, and each would be
        paid for: it is started only if it has as many as it should, and otherwise another is made.
        """
        for _ in range(TRIES):
            batch_id = await self._with_room(self._batches.create)
            self._list.journal.submitted(batch_id, [*chain.from_iterable(shards)])
            requests = (self._list.body(shard, shard[0] + NUMBERED_FROM) for shard in shards)
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

    async def _follow(self, batch_id: str, *, last: bool) -> None:
        """Journal the results of a batch until it has ended, or does not even end after it was cancelled."""
        seen = set[str]()
        began = moved = time.monotonic()
        before, listed, cancelled = None, 0, False
        while not (batch := await self._batches.state(batch_id)).ended:
            now = time.monotonic()
            if batch != before:
                before, moved = batch, now
            self._show(batch)
            if batch.done >= max(1, 2 * listed):  # a listing has everything that the one before had, so they are few
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
        for _ in range(TRIES):  # a list that changes while its pages are read may leave some out
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
        """Journal the envelopes of a request; their indices say which items they belong to."""
        try:
            envelopes = output(request, None, None)
        except JobFailed as fault:
            self._fault = fault
            return
        places = range(NUMBERED_FROM, NUMBERED_FROM + len(self._list.items))
        if not envelopes or envelopes[0]["index"] not in places or envelopes[-1]["index"] not in places:
            raise AnotherWorker(request["id"], "its results are not numbered from its first_index")

        async def place(envelope: Envelope) -> Envelope:
            envelope["index"] -= NUMBERED_FROM
            return await self._list.save(envelope)

        new = [envelope for envelope in envelopes if envelope["index"] - NUMBERED_FROM not in self._list.journal]
        async with aclosing(self._list.client.fetched(new, place)) as arriving:
            async for envelope in arriving:
                if len(envelopes) > 1 and self._list.crowded(envelope):
                    self._alone.add(envelope["index"])
                else:
                    self._list.record(envelope, last=last)

    def _show(self, batch: BatchState) -> None:
        self._states[batch.id] = batch
        states = self._states.values()
        done, total = sum(each.done for each in states), sum(each.total for each in states)
        self._list.show(f"{done} of {counted(total, 'request')}")
