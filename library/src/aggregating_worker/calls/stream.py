"""Items in, ordered envelopes out: bounded, cancellable, and at work while the SDK is posting."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from aggregating_worker.calls import subtasks
from aggregating_worker.calls.attempt import LET_GO_AFTER
from aggregating_worker.calls.function import Function
from aggregating_worker.calls.pool import Pool
from aggregating_worker.calls.work import Options, Work
from aggregating_worker.outcome.overflow import CHUNK_BYTES, Output
from aggregating_worker.outcome.result import Outcome
from aggregating_worker.settings import Settings


class Stream:
    """The way of every job through ``function``: the task's ``process`` or, if ``batched``, its ``process_batch``."""

    def __init__(self, function: Function, settings: Settings, *, batched: bool, with_context: bool = False) -> None:
        self.pool = Pool(function, settings, batched=batched, with_context=with_context)
        self._lookahead = settings.lookahead
        self._chunk_size = settings.chunk_size

    async def run(
        self,
        items: Sequence[object],
        job: object,
        job_id: str,
        output: Output,
        *,
        first_index: int = 0,
        sent: Mapping[str, Any] = MappingProxyType({}),
    ) -> AsyncGenerator[list[Outcome], None]:
        """Yield chunks of at most ``CHUNK_SIZE`` envelopes: one envelope for each of ``items``, in their order.

        ``job`` is what the function gets as its second argument; ``first_index`` is the first envelope's,
        and ``sent`` what a task may see of the job as it came. Closing the
        generator, or cancelling whoever awaits it, starts no further call, cancels the async ones that nobody else
        waits for, and leaves the blocking ones to return into the void.
        """
        pool, loop = self.pool, asyncio.get_running_loop()
        work = Work(
            items,
            job,
            job_id,
            output,
            first_index=first_index,
            sent=sent,
            lookahead=self._lookahead,
            finishers=pool.finishers,
            options=Options(job) if pool.task.batched else None,
            send_parts=pool.send_parts if pool.task.in_parts else None,
        )
        if pool.task.is_async:
            subtasks.install()
        try:
            pool.enter(work)
            unsent = len(items)
            while unsent:
                chunk = [await work.head()]
                left = CHUNK_BYTES - chunk[0].size - len(", ")
                while len(chunk) < self._chunk_size and (envelope := work.next_ready(left)):
                    chunk.append(envelope)
                    left -= envelope.size + len(", ")
                if chunk[1:]:  # all but one, so that the next chunk fills while this one is being posted
                    work.make_room(len(chunk) - 1)
                    loop.call_soon(pool.offer, work)
                yield chunk
                work.make_room(1)
                loop.call_soon(pool.offer, work)  # and not before the next chunk is on its way
                unsent -= len(chunk)
        finally:
            if ending := pool.leave(work):
                await asyncio.wait(ending, timeout=LET_GO_AFTER)
