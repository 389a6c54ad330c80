"""One call of the task: from the slot it takes to the envelopes it makes, whatever the task does.

A *slot* is one of the worker's ``ITEM_CONCURRENCY`` calls at once, shared by all of its jobs in turn.
"""

import asyncio
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from worker import log, subtasks
from worker.overflow import Output
from worker.result import Envelope, Raised, describe, failure, success
from worker.settings import Settings
from worker.threads import Threads

LET_GO_AFTER = 1.0
"""Seconds that a cancelled async call has to clean up."""

Function = Callable[[Any, Any], Any]
Outcome = asyncio.Future[list[Envelope]]


@dataclass(frozen=True)
class Work:
    """What the calls of one job share: its items, what each call gets with them, and where the envelopes go."""

    items: Sequence[object]
    job: object
    job_id: str
    output: Output


class Calls:
    """The worker's calls of ``function``, which is the task's ``process`` or, if ``batched``, its ``process_batch``."""

    def __init__(self, function: Function, settings: Settings, *, batched: bool) -> None:
        self._function = function
        self._batched = batched
        self._timeout = settings.item_timeout
        self._threads = Threads()
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004  # of an object with an async one
        )
        default = 1 if batched else 32 if self.is_async else 4
        self.concurrency = settings.item_concurrency or default
        self._slots = asyncio.Semaphore(self.concurrency)

    async def start(self, indices: range, work: Work) -> tuple[Outcome, asyncio.Task[None]]:
        """Wait for a slot and start the call for the items at ``indices``; it gives the slot back when it ends.

        The outcome is settled once: by the call, by ``ITEM_TIMEOUT``, or by whoever cancels it. A call that is no
        longer waited for is cancelled if it is async; a blocking one keeps its slot until it returns.
        """
        await self._slots.acquire()
        loop = asyncio.get_running_loop()
        outcome: Outcome = loop.create_future()

        def settle(envelopes: list[Envelope]) -> None:
            if not outcome.done():
                outcome.set_result([work.output.admit(envelope) for envelope in envelopes])

        async def call() -> None:
            try:
                made = await self._call(indices, work, outcome)
                for place, envelope in enumerate(made):
                    if not outcome.done() and (store := work.output.overflow(envelope)):
                        made[place] = await self._threads.run(store)
                settle(made)
            except BaseException as error:  # not the task's, which `_call` returns: no thread could be started, say
                if outcome.done():
                    raise
                raised = describe(error)
                log.error("A call could not be made", raised, work.job_id)
                settle([raised.envelope(index) for index in indices])
            finally:
                self._slots.release()

        def expire() -> None:
            message = f"No result within {self._timeout:g} s per item (ITEM_TIMEOUT)."
            settle([failure(index, "TimeoutError", message) for index in indices])

        if self._timeout:
            timer = loop.call_later(self._timeout * len(indices), expire)
            outcome.add_done_callback(lambda _: timer.cancel())
        return outcome, asyncio.Task(call())

    async def _call(self, indices: range, work: Work, outcome: Outcome) -> list[Envelope]:
        """Return an envelope per item. A batch that raises is retried item by item: only the guilty one fails."""
        made = await self._attempt(indices, work, outcome)
        if not isinstance(made, Raised):
            return made
        if len(indices) == 1:
            log.error(f"Item {indices[0]} failed", made, work.job_id)
            return [made.envelope(indices[0])]
        log.error(f"Items {indices[0]} to {indices[-1]} failed as a batch; now one by one", made, work.job_id)
        envelopes: list[Envelope] = []
        for index in indices:
            if outcome.done():  # timed out or cancelled: nobody waits for the rest
                break
            envelopes += await self._call(range(index, index + 1), work, outcome)
        return envelopes

    async def _attempt(self, indices: range, work: Work, outcome: Outcome) -> list[Envelope] | Raised:
        """Call the function once; seal what it returns, or describe what it raises, where it ran.

        No exception leaves: a future cannot carry ``StopIteration``, a task lets ``SystemExit`` end the event loop.
        """
        items = [work.items[index] for index in indices]
        argument = items if self._batched else items[0]
        made: list[list[Envelope] | Raised] = []

        def blocking() -> None:
            try:
                made.append(self._seal(self._function(argument, work.job), indices))
            except BaseException as error:
                made.append(describe(error))

        async def awaiting() -> None:
            subtasks.guarded.set(True)
            try:
                made.append(self._seal(await self._function(argument, work.job), indices))
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError) and outcome.done():
                    raise  # ours; any other comes from the task itself and is a failure like the rest
                made.append(describe(error))

        if self.is_async:
            # A task of its own, waited for and not awaited: whatever the function does to it, that ends with it.
            call = asyncio.Task(awaiting())
            outcome.add_done_callback(lambda _: _end(call))
            await _ended(call)
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


def _sealed(index: int, value: object) -> Envelope:
    try:
        return success(index, value)
    except BaseException as error:
        return describe(error).envelope(index)


def _ended(call: asyncio.Task[None]) -> asyncio.Future[None]:
    """Return a future that is done when ``call`` is, and does not raise what it raises: a quicker ``asyncio.wait``."""
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def note(_: asyncio.Task[None]) -> None:
        if not ended.done():
            ended.set_result(None)

    call.add_done_callback(note)
    return ended


def _end(call: asyncio.Task[None]) -> None:
    """Cancel ``call`` if it has not ended; if it will not, leave it: the event loop must not wait for it to close."""
    if call.cancel():
        asyncio.get_running_loop().call_later(LET_GO_AFTER, asyncio._unregister_task, call)
