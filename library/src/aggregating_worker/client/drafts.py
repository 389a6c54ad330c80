"""Batches on their way to being worked off, made so that nothing is paid for twice, even if an answer is lost."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import TypeVar

from aggregating_worker.client.batch import Batch
from aggregating_worker.client.http import CallFailed
from aggregating_worker.client.work import TRIES, Work

NUMBERED_FROM = 1
"""The number of the list's first item: a worker that does not know ``first_index`` counts from 0, and is noticed."""
PAUSE = 10.0
"""Seconds between two questions whether there is room for another batch."""
AROUND_CREATION = 600_000
"""Milliseconds within which a batch was made for us, if it was made at all: its clock may differ from ours."""

T = TypeVar("T")


class Drafts:
    """Makes batches for ``work``, waiting for room for up to ``patience`` seconds. Calls may raise ``CallFailed``."""

    def __init__(self, work: Work, patience: float) -> None:
        self._work = work
        self._batches = work.client.batches
        self._patience = patience

    async def left(self) -> list[tuple[Batch, list[int]]]:
        """Return the batches of earlier runs that may bring something, with the indices of their items.

        Drafts are cancelled: nothing of them ran.
        """
        left = []
        for batch_id, indices in self._work.journal.unfinished():
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

    async def clear(self) -> None:
        """Cancel drafts that were made for us and whose ids never reached the journal: nobody will fill them."""
        drafted = self._work.journal.drafted
        with suppress(CallFailed):
            for batch in await self._batches.all() if drafted else ():
                ours = any(abs(batch.created - at) < AROUND_CREATION for at in drafted)
                if ours and batch.status == "DRAFT" and batch.total == 0:
                    await self._batches.cancel(batch.id)

    async def submit(self, shards: list[list[int]]) -> str:
        """Return the id of a batch that does ``shards``."""
        journal = self._work.journal
        for _ in range(TRIES):
            journal.drafting(time.time_ns() // 1_000_000)
            batch_id = await self._in_turn(self._batches.create)
            journal.submitted(batch_id, [*chain.from_iterable(shards)])
            if await self._fill(batch_id, shards):
                await self._in_turn(partial(self._batches.finalize, batch_id))
                return batch_id
            with suppress(CallFailed):
                await self._batches.cancel(batch_id)
        raise CallFailed("The endpoint does not keep the requests that are added to a batch: try again later.")

    async def _fill(self, batch_id: str, shards: list[list[int]]) -> bool:
        """Add ``shards`` to a draft; return whether it has each of them once, and may be worked off.

        Where an answer is lost, the call is made again, and what is in twice would be paid for twice. And a draft may
        be cancelled by somebody: by another of these, which takes it for one that its own creation has left.
        """
        requests = (self._work.body(shard, shard[0] + NUMBERED_FROM) for shard in shards)
        try:
            await self._batches.add(batch_id, requests)
        except CallFailed:
            if (await self._batches.state(batch_id)).status == "DRAFT":
                raise
            return False
        return (await self._batches.state(batch_id)).total == len(shards)

    async def _in_turn(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return what ``call`` returns, once the endpoint has room for another batch."""
        until = time.monotonic() + self._patience
        while True:
            try:
                return await call()
            except CallFailed as error:
                if error.status != 429 or time.monotonic() > until:
                    raise
            await asyncio.sleep(PAUSE)
