"""Takes a job's items and yields their outcomes in order: bounded, cancellable, and at work while chunks are posted."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from aggregating_worker.calls.slots import Slots
from aggregating_worker.calls.work import Options, Work
from aggregating_worker.delivery.parts import Send
from aggregating_worker.delivery.progress import SendProgress
from aggregating_worker.outcome.overflow import CHUNK_BYTES, Output
from aggregating_worker.outcome.result import Outcome
from aggregating_worker.process.function import TaskFunction
from aggregating_worker.process.process import Process
from aggregating_worker.process.threads import Threads
from aggregating_worker.settings import Settings

FINISHERS = 16
"""Threads that upload to the bucket."""


class Stream:
    """Runs jobs through the task's ``function``, in ``processes``."""

    def __init__(self, function: TaskFunction, processes: Sequence[Process], settings: Settings) -> None:
        most = settings.item_concurrency or (1 if function.batched else 32 if function.is_async else 4)
        self.slots = Slots(processes, settings, batched=function.batched, slots=most)
        self.send_parts: Send | None = None
        """Posts the parts of items, if they can be streamed."""
        self.send_progress: SendProgress | None = None
        """Posts how far items are, if that can be shown."""
        self._function = function
        self._lookahead = settings.lookahead
        self._chunk_size = settings.chunk_size
        self._finishers = Threads(FINISHERS)

    async def run(
        self,
        items: Sequence[object],
        options: Options,
        job_id: str,
        output: Output,
        *,
        first_index: int = 0,
        sent: Mapping[str, Any] = MappingProxyType({}),
    ) -> AsyncGenerator[list[Outcome], None]:
        """Yield an outcome for each of ``items``, in their order, in chunks of at most ``CHUNK_SIZE``.

        ``options`` are the rest of the job's checked input; ``sent`` is the job as
        the platform sent it, without credentials; ``first_index`` is the first item's index. When the generator is
        closed, or its consumer is cancelled, no further call starts; calls that no other job needs are cancelled.
        """
        slots, loop = self.slots, asyncio.get_running_loop()
        work = Work(
            items,
            options,
            job_id,
            output,
            first_index=first_index,
            sent=sent if self._function.with_context else {},
            shares_calls=self._function.batched,
            lookahead=self._lookahead,
            finishers=self._finishers,
            send_parts=self.send_parts if self._function.in_parts else None,
            send_progress=self.send_progress,
            look=slots.look,
        )
        try:
            slots.enter(work)
            unsent = len(items)
            while unsent:
                chunk = [await work.head()]
                left = CHUNK_BYTES - chunk[0].size - len(", ")
                while len(chunk) < self._chunk_size and (outcome := work.next_ready(left)):
                    chunk.append(outcome)
                    left -= outcome.size + len(", ")
                if chunk[1:]:  # all but one of them: the next chunk fills up while this one is posted
                    work.make_room(len(chunk) - 1)
                    loop.call_soon(slots.offer, work)
                yield chunk
                if work.make_room(1):
                    loop.call_soon(slots.offer, work)  # only when the next chunk is on its way
                unsent -= len(chunk)
            if work.progress:
                await work.progress.end()  # before the final body, which is sent when this generator has ended
        finally:
            slots.leave(work)
