"""One run of the task's function on a list of items: what it is given, and what becomes of what it returns."""

import asyncio
import copy
import inspect
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from pydantic import BaseModel

from aggregating_worker import log
from aggregating_worker.calls import subtasks
from aggregating_worker.calls.function import TaskFunction
from aggregating_worker.calls.threads import Inbox
from aggregating_worker.calls.work import Work
from aggregating_worker.context import Context, in_call
from aggregating_worker.outcome.files import Unencoded, find
from aggregating_worker.outcome.result import Outcome, Raised, describe, encoded_part, failure, success

LET_GO_AFTER = 1.0
"""Seconds that a cancelled async function has to clean up."""
LONGEST_TURN = 0.01
"""Seconds for which an async generator may yield and await nothing."""

Made = Outcome | Unencoded


class Item(NamedTuple):
    """The item at ``place`` in the job of ``work``."""

    work: Work
    place: int

    @property
    def number(self) -> int:
        """The ``index`` of its envelope."""
        return self.work.first_index + self.place

    @property
    def context(self) -> Context:
        """What a task may know of it."""
        return Context(self.work.job_id, self.number, self.work.sent)

    def settle(self, envelope: Outcome) -> None:
        """Give the item its outcome."""
        self.work.settle(self.place, envelope)


@dataclass(eq=False)
class Attempt:
    """The task's function on ``items``: in a thread if it blocks, else as a task of the event loop."""

    task: TaskFunction
    items: list[Item]
    given_up: float | None = None
    """Since when nobody waits for it, in seconds of ``time.monotonic``."""
    running: "asyncio.Task[None] | None" = None
    """What is to end, if it is async."""
    outcome: list[Made] | Raised | None = None
    """What was made of each item, or what was raised for all of them; None if something else ended it."""

    def start(self, ended: Callable[[], None]) -> None:
        """Begin; ``ended`` is called on the event loop once the function has returned."""
        if self.task.is_async:
            # Not through the loop's task factory, and never awaited: whatever the function does to it ends with it.
            self.running = asyncio.Task(self._await())
            self.running.add_done_callback(lambda _: ended())
            return
        part = Inbox(self._part).put if self.task.in_parts else None
        try:
            self.task.threads.run(partial(self._block, part), lambda _: ended())
        except RuntimeError as error:  # no thread could be started
            self.outcome = describe(error)
            asyncio.get_running_loop().call_soon(ended)

    def give_up(self) -> None:
        """Wait no longer; an async function is cancelled, a blocking one goes on until it returns."""
        self.given_up = time.monotonic()
        if self.running and self.running.cancel():
            # If it will not, leave it: the event loop must not wait for it to close.
            loop = asyncio.get_running_loop()
            loop.call_later(LET_GO_AFTER, partial(asyncio._unregister_task, self.running))

    def _block(self, part: Callable[[bytes], None] | None) -> None:
        self._say_where()
        try:
            returned = self.task.function(*self._arguments())
            if part and inspect.isgenerator(returned):
                returned = self._in_parts(returned, part)
            self.outcome = _copied(self.items, self._seal(returned))
        except BaseException as error:  # described here: a future cannot carry ``StopIteration``
            self.outcome = describe(error)

    async def _await(self) -> None:
        subtasks.guarded.set(True)
        self._say_where()
        try:
            returned = self.task.function(*self._arguments())
            if inspect.isasyncgen(returned):
                returned = await self._in_parts_async(returned)
            elif inspect.isawaitable(returned):
                returned = await returned
            made = self._seal(returned)
            if any(isinstance(one, Unencoded) for one in made):
                copied: asyncio.Future[list[Made]] = asyncio.get_running_loop().create_future()
                # Not behind uploads.
                self.task.threads.run(partial(_copied, self.items, made), partial(_resolve, copied))
                made = await copied
            self.outcome = made
        except BaseException as error:  # a task lets ``SystemExit`` end the event loop
            # Not ``isinstance``, which asks the exception. Any other than ours is the function's own: a failure.
            if self.given_up is not None and issubclass(type(error), asyncio.CancelledError):
                raise
            self.outcome = describe(error)

    def _in_parts(self, generator: Generator[Any, Any, Any], put: Callable[[bytes], None]) -> Any:
        """Return all that ``generator`` yields, and ``put`` each part of it; close it when nobody waits any more."""
        parts = []
        with closing(generator):
            for part in generator:
                if self.given_up is not None:
                    break
                if not find(part):  # files are in the result
                    put(encoded_part(part))
                parts.append(part)
        return _whole(parts)

    async def _in_parts_async(self, generator: AsyncGenerator[Any, Any]) -> Any:
        parts = []
        turn = time.monotonic()
        async with aclosing(generator):
            async for part in generator:
                if not find(part):
                    self._part(encoded_part(part))
                parts.append(part)
                if time.monotonic() > turn + LONGEST_TURN:  # one that awaits nothing would keep the worker to itself
                    await asyncio.sleep(0)
                    turn = time.monotonic()
        return _whole(parts)

    def _part(self, part: bytes) -> None:
        [item] = self.items
        if self.given_up is None and item.work.parts:
            item.work.parts.add(item.number, part)

    def _say_where(self) -> None:
        """Tell the log whose items these are."""
        job_ids = {work.job_id for work, _ in self.items}
        index = self.items[0].number if len(self.items) == 1 else None
        in_call.set((self.items[0].work.job_id if len(job_ids) == 1 else None, index))

    def _arguments(self) -> list[Any]:
        """Return what the function gets: copies of a batch's items, so that it cannot change what a half would get.

        The job of a batch has these items, whoever's they are, and the options that its jobs have in common.
        """
        items = [work.items[place] for work, place in self.items]
        contexts = [item.context for item in self.items] if self.task.with_context else []
        job = self.items[0].work.job
        if not self.task.batched:
            return [items[0], job, *contexts]
        if len(items) > 1:
            with suppress(BaseException):  # what cannot be copied is given as it is
                items = copy.deepcopy(items)
        if isinstance(job, BaseModel):
            job = job.model_copy(update={"items": list(items)})
            for name in vars(job).keys() - type(job).model_fields.keys():  # cached properties, of other items
                del vars(job)[name]
        return [items, job, contexts] if self.task.with_context else [items, job]

    def _seal(self, returned: Any) -> list[Made]:
        if not self.task.batched:
            return [_sealed(self.items[0], returned)]
        if not isinstance(returned, list | tuple) and not hasattr(returned, "tolist"):
            found = f"a {type(returned).__name__}, not a list"
        elif len(returned) != len(self.items):
            found = f"{len(returned)} results"
        else:
            return [_sealed(item, value) for item, value in zip(self.items, returned, strict=True)]
        message = f"process_batch returned {found} for {len(self.items)} items."
        return [failure(item.number, "WrongResults", message) for item in self.items]


def _whole(parts: list[Any]) -> Any:
    return "".join(parts) if all(isinstance(part, str) for part in parts) else parts


def _sealed(item: Item, value: object) -> Made:
    try:
        if isinstance(value, dict) and value.get("refresh_worker"):  # as a plain handler asks for it (SDK, ``rp_job``)
            item.work.output.refresh_worker = True
            value = {name: inner for name, inner in value.items() if name != "refresh_worker"}
        return find(value) or success(item.number, value)
    except BaseException as error:  # of the task's own types
        return _unsendable(item, error)


def _copied(items: list[Item], made: list[Made]) -> list[Made]:
    """Return ``made`` with its files copied, before the task gets the next items."""
    return [one if isinstance(one, Outcome) else _copy(item, one) for item, one in zip(items, made, strict=True)]


def _copy(item: Item, made: Unencoded) -> Made:
    try:
        made.take()
    except BaseException as error:
        return _unsendable(item, error)
    return made


def _unsendable(item: Item, error: BaseException) -> Outcome:
    raised = describe(error)
    log.error(f"The result of item {item.number} cannot be sent", item.work.job_id, raised.trace)
    return raised.envelope(item.number)


def _resolve(future: "asyncio.Future[list[Made]]", made: list[Made]) -> None:
    if not future.done():
        future.set_result(made)
