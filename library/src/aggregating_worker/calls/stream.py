"""Takes a job's items and yields their outcomes in order: bounded, cancellable, and at work while chunks are posted."""

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
    """Runs jobs through ``function``: the task's ``process`` or, if ``batched``, its ``process_batch``."""

    def __init__(self, function: Function, settings: Settings, *, batched: bool, with_context: bool = False) -> None:
        self.pool = Pool(function, settings, batched=batched, with_context=with_context)
        self._lookahead = settings.lookahead
        self._chunk_size = settings.chunk_size

    async def run(
        self,
        items: Sequence[object],
        request: object,
        job_id: str,
        output: Output,
        *,
        first_index: int = 0,
        sent: Mapping[str, Any] = MappingProxyType({}),
    ) -> AsyncGenerator[list[Outcome], None]:
        """Yield an outcome for each of ``items``, in their order, in chunks of at most ``CHUNK_SIZE``.

        ``request`` is the job's checked input, the function's second argument; ``sent`` is the job as the platform sent
        it, without credentials; ``first_index`` is the first item's index. When the generator is closed, or its
        consumer is cancelled, no further call starts; async calls that no other job needs are cancelled, and the
        results of blocking ones are dropped.
        """
        pool, loop = self.pool, asyncio.get_running_loop()
        work = Work(
            items,
            request,
            job_id,
            output,
            first_index=first_index,
            sent=sent,
            lookahead=self._lookahead,
            finishers=pool.finishers,
            options=Options(request) if pool.task.batched else None,
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
                while len(chunk) < self._chunk_size and (outcome := work.next_ready(left)):
                    chunk.append(outcome)
                    left -= outcome.size + len(", ")
                if chunk[1:]:  # all but one of them: the next chunk fills up while this one is posted
                    work.make_room(len(chunk) - 1)
                    loop.call_soon(pool.offer, work)
                yield chunk
                work.make_room(1)
                loop.call_soon(pool.offer, work)  # only when the next chunk is on its way
                unsent -= len(chunk)
        finally:
            if ending := pool.leave(work):
                await asyncio.wait(ending, timeout=LET_GO_AFTER)
