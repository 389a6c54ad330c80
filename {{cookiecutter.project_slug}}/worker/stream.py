"""Items in, ordered envelopes out: bounded, cancellable, and at work while the SDK is posting.

Per job there is a feeder, which starts calls as slots and room allow, and the generator, which yields what they become
in input order. *Room* is one of the job's ``LOOKAHEAD`` results that are started and not yet streamed, where the chunk
that is being posted counts as one.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence

from worker import subtasks
from worker.calls import LET_GO_AFTER, Calls, Function, Outcome, Work
from worker.overflow import CHUNK_BYTES, Output
from worker.result import Envelope
from worker.settings import Settings


class Stream:
    """The way of every job through ``function``: the task's ``process`` or, if ``batched``, its ``process_batch``."""

    def __init__(self, function: Function, settings: Settings, *, batched: bool) -> None:
        self._calls = Calls(function, settings, batched=batched)
        self._group = min(settings.batch_size, settings.lookahead) if batched else 1
        self._lookahead = settings.lookahead
        self._chunk_size = settings.chunk_size

    async def run(
        self, items: Sequence[object], job: object, job_id: str, output: Output
    ) -> AsyncGenerator[list[Envelope], None]:
        """Yield chunks of at most ``CHUNK_SIZE`` envelopes: one envelope for each of ``items``, in their order.

        ``job`` is what the function gets as its second argument. Closing the generator, or cancelling whoever awaits
        it, starts no further call, cancels the async ones and leaves the blocking ones to return into the void.
        """
        work = Work(tuple(items), job, job_id, output)
        room = asyncio.Semaphore(self._lookahead)
        outcomes: deque[Outcome] = deque()
        calls: set[asyncio.Task[None]] = set()
        started = asyncio.Event()

        async def feed() -> None:
            for first in range(0, len(work.items), self._group):
                indices = range(first, min(first + self._group, len(work.items)))
                for _ in indices:
                    await room.acquire()
                outcome, call = await self._calls.start(indices, work)
                outcomes.append(outcome)
                calls.add(call)
                call.add_done_callback(calls.discard)
                started.set()

        if self._calls.is_async:
            subtasks.install()
        feeder = asyncio.create_task(feed())
        try:
            ready: deque[Envelope] = deque()
            unsent = len(work.items)
            while unsent:
                while not outcomes and not ready:
                    started.clear()
                    await started.wait()
                if not ready:
                    ready.extend(await outcomes.popleft())
                chunk = [ready.popleft()]
                size = chunk[0].size
                while len(chunk) < self._chunk_size:
                    if not ready and outcomes and outcomes[0].done():
                        ready.extend(outcomes.popleft().result())
                    if not ready or (size := size + ready[0].size + len(", ")) > CHUNK_BYTES:
                        break
                    chunk.append(ready.popleft())
                for _ in chunk[1:]:  # all but one, so that the next chunk fills while this one is being posted
                    room.release()
                yield chunk
                room.release()
                unsent -= len(chunk)
        finally:
            feeder.cancel()
            for outcome in outcomes:
                outcome.cancel()
            pending = {feeder, *calls} if self._calls.is_async else {feeder}
            await asyncio.wait(pending, timeout=LET_GO_AFTER)
