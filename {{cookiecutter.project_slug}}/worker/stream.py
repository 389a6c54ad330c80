"""Items in, ordered envelopes out: bounded, cancellable, and at work while the SDK is posting.

Per job there is a feeder, which starts calls of the task as slots and room allow, and the generator, which yields what
they become in input order. A *slot* is one of the worker's ``ITEM_CONCURRENCY`` calls, shared by all of its jobs in
turn; *room* is one of the job's ``LOOKAHEAD`` results that are started and not yet streamed, where the chunk that is
being posted counts as one.
"""

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from worker import log, subtasks
from worker.overflow import Output
from worker.result import Envelope, Raised, describe, failure, success
from worker.settings import Settings
from worker.threads import Threads

CHUNK_BYTES = 1_000_000 - len('{"output": []}')
"""The platform's limit for one streamed chunk, less what the SDK and the list put around the envelopes."""
LET_GO_AFTER = 1.0
"""Seconds that a cancelled job waits for its async calls to clean up."""

Function = Callable[[Any, Any], Any]
Outcome = asyncio.Future[list[Envelope]]


class Stream:
    """The worker's calls of ``function``, which is the task's ``process`` or, if ``batched``, its ``process_batch``."""

    def __init__(self, function: Function, settings: Settings, *, batched: bool) -> None:
        self._function = function
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004  # of an object with an async one
        )
        self._batched = batched
        self._settings = settings
        self._group = min(settings.batch_size, settings.lookahead) if batched else 1
        self._slots = asyncio.Semaphore(settings.item_concurrency or (1 if batched else 32 if self._is_async else 4))
        self._threads = Threads()

    async def run(
        self, items: Sequence[object], job: object, job_id: str, output: Output
    ) -> AsyncGenerator[list[Envelope], None]:
        """Yield chunks of at most ``CHUNK_SIZE`` envelopes: one envelope for each of ``items``, in their order.

        ``job`` is what the function gets as its second argument. Closing the generator, or cancelling whoever awaits
        it, starts no further call, cancels the async ones and leaves the blocking ones to return into the void.
        """
        if self._is_async:
            subtasks.install()
        room = asyncio.Semaphore(self._settings.lookahead)
        outcomes: deque[Outcome] = deque()
        calls: set[asyncio.Task[None]] = set()
        started = asyncio.Event()

        async def feed() -> None:
            for first in range(0, len(items), self._group):
                indices = range(first, min(first + self._group, len(items)))
                for _ in indices:
                    await room.acquire()
                await self._slots.acquire()
                outcome, call = self._start(indices, items, job, job_id, output)
                outcomes.append(outcome)
                calls.add(call)
                call.add_done_callback(calls.discard)
                started.set()

        feeder = asyncio.create_task(feed())
        try:
            ready: deque[Envelope] = deque()
            unsent = len(items)
            while unsent:
                while not outcomes and not ready:
                    started.clear()
                    await started.wait()
                if not ready:
                    ready.extend(await outcomes.popleft())
                chunk = [ready.popleft()]
                size = chunk[0].size
                while len(chunk) < self._settings.chunk_size:
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
            pending = {feeder, *calls} if self._is_async else {feeder}
            await asyncio.wait(pending, timeout=LET_GO_AFTER)

    def _start(
        self, indices: range, items: Sequence[object], job: object, job_id: str, output: Output
    ) -> tuple[Outcome, asyncio.Task[None]]:
        """Start the call for the items at ``indices``, whose slot is taken. It gives the slot back when it ends."""
        loop = asyncio.get_running_loop()
        outcome: Outcome = loop.create_future()

        def settle(envelopes: list[Envelope]) -> None:
            if not outcome.done():
                outcome.set_result([output.admit(envelope) for envelope in envelopes])

        async def call() -> None:
            try:
                settle(await self._call(indices, items, job, job_id, outcome))
            except BaseException as error:  # not the task's, which `_call` returns: no thread could be started, say
                if outcome.done():
                    raise
                raised = describe(error)
                log.error("A call could not be made", raised, job_id)
                settle([failure(index, raised.kind, raised.message) for index in indices])
            finally:
                self._slots.release()

        def expire() -> None:
            message = f"No result within {self._settings.item_timeout:g} s per item (ITEM_TIMEOUT)."
            settle([failure(index, "TimeoutError", message) for index in indices])

        task = asyncio.create_task(call())
        if self._settings.item_timeout:
            timer = loop.call_later(self._settings.item_timeout * len(indices), expire)
            outcome.add_done_callback(lambda _: timer.cancel())
        return outcome, task

    async def _call(
        self, indices: range, items: Sequence[object], job: object, job_id: str, outcome: Outcome
    ) -> list[Envelope]:
        """Return an envelope per item, whatever the function does. A batch that raises is retried item by item."""
        argument = [items[index] for index in indices] if self._batched else items[indices[0]]
        made = await self._attempt(argument, job, indices, outcome)
        if not isinstance(made, Raised):
            return made
        if len(indices) == 1:
            log.error(f"Item {indices[0]} failed", made, job_id)
            return [failure(indices[0], made.kind, made.message)]
        log.error(f"A batch failed (items {indices[0]} to {indices[-1]}) and is retried item by item", made, job_id)
        envelopes: list[Envelope] = []
        for index in indices:
            if outcome.done():  # timed out or cancelled: nobody waits for the rest
                break
            envelopes += await self._call(range(index, index + 1), items, job, job_id, outcome)
        return envelopes

    async def _attempt(
        self, argument: object, job: object, indices: range, outcome: Outcome
    ) -> list[Envelope] | Raised:
        """Call the function once; seal what it returns, or describe what it raises, where it ran.

        No exception leaves: a future cannot carry ``StopIteration``, a task lets ``SystemExit`` end the event loop.
        """
        made: list[list[Envelope] | Raised] = []

        def blocking() -> None:
            try:
                made.append(self._seal(self._function(argument, job), indices))
            except BaseException as error:
                made.append(describe(error))

        async def awaiting() -> None:
            subtasks.guarded.set(True)
            try:
                made.append(self._seal(await self._function(argument, job), indices))
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError) and outcome.done():
                    raise  # ours; any other comes from the task itself and is a failure like the rest
                made.append(describe(error))

        if self._is_async:
            # A task of its own, waited for and not awaited: whatever the function does to it, that ends with it.
            call = asyncio.create_task(awaiting())
            outcome.add_done_callback(lambda _: _end(call))  # settled by the timer or by a cancelled job
            await asyncio.wait({call})
        else:
            await self._threads.run(blocking)
        return made[0] if made else []

    def _seal(self, returned: Any, indices: range) -> list[Envelope]:
        if not self._batched:
            return [_sealed(indices[0], returned)]
        if not isinstance(returned, list | tuple) and not hasattr(returned, "tolist"):
            found = f"a {type(returned).__name__}, not a list"
        elif len(returned) != len(indices):
            found = f"{len(returned)} results"
        else:
            return [_sealed(index, value) for index, value in zip(indices, returned, strict=True)]
        message = f"process_batch returned {found} for {len(indices)} items."
        return [failure(index, "WrongResults", message) for index in indices]


def _end(call: asyncio.Task[None]) -> None:
    """Cancel ``call`` if it has not ended; if it will not, leave it: the event loop must not wait for it to close."""
    if call.cancel():
        asyncio.get_running_loop().call_later(LET_GO_AFTER, asyncio._unregister_task, call)


def _sealed(index: int, value: object) -> Envelope:
    try:
        return success(index, value)
    except BaseException as error:
        raised = describe(error)
        return failure(index, raised.kind, raised.message)
