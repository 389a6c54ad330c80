"""One run of the task's function on a list of items: its arguments, and what is made of its results."""

import asyncio
import copy
import inspect
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import BaseModel

from aggregating_worker import log
from aggregating_worker.calls import subtasks
from aggregating_worker.calls.function import TaskFunction
from aggregating_worker.calls.threads import Inbox
from aggregating_worker.calls.work import Work
from aggregating_worker.context import Context, in_call
from aggregating_worker.outcome.files import Unencoded, find
from aggregating_worker.outcome.result import Outcome, Raised, describe, encoded_part, failure, success
from aggregating_worker.sentence import counted

LET_GO_AFTER = 1.0
"""Seconds for which a cancelled async function may clean up."""
LONGEST_TURN = 0.01
"""Seconds for which an async generator may keep the event loop."""

Made = Outcome | Unencoded


@dataclass(eq=False, slots=True)
class Item:
    """The item at ``place`` in the job of ``work``."""

    work: Work
    place: int

    @property
    def index(self) -> int:
        """Its number in the envelope."""
        return self.work.first_index + self.place

    @property
    def context(self) -> Context:
        """What the task's function may ask about it."""
        return Context(self.work.job_id, self.index, self.work.sent)

    def settle(self, outcome: Outcome) -> None:
        """Give the item its outcome."""
        self.work.settle(self.place, outcome)


@dataclass(eq=False)
class Attempt:
    """One run of the task's function on ``items``: in a thread if it blocks, else as an asyncio task."""

    task: TaskFunction
    items: list[Item]
    given_up: float | None = None
    """When it was given up, in seconds of ``time.monotonic``: nobody waits for it any more."""
    running: "asyncio.Task[None] | None" = None
    """Its asyncio task, if the function is async."""
    made: list[Made] | Raised | None = None
    """What was made of each item, or what the function raised; None if the asyncio task was cancelled."""

    def start(self, ended: Callable[[], None]) -> None:
        """Begin. ``ended`` is called on the event loop once the function has ended."""
        if self.task.is_async:
            # Not by the loop's task factory, and never awaited: what the function does to this asyncio task stays here.
            self.running = asyncio.Task(self._await())
            self.running.add_done_callback(lambda _: ended())
            return
        part = Inbox(self._part).put if self.task.in_parts else None
        try:
            self.task.threads.run(partial(self._block, part), lambda _: ended())
        except RuntimeError as error:  # no thread could be started
            self.made = describe(error)
            asyncio.get_running_loop().call_soon(ended)

    def give_up(self) -> None:
        """Wait no longer: an async function is cancelled, a blocking one runs on until it returns."""
        self.given_up = time.monotonic()
        if self.running and self.running.cancel():
            # If it goes on all the same, the event loop must not wait for it when it closes.
            loop = asyncio.get_running_loop()
            loop.call_later(LET_GO_AFTER, partial(asyncio._unregister_task, self.running))

    def _block(self, part: Callable[[bytes], None] | None) -> None:
        self._say_where()
        try:
            returned = self.task.function(*self._arguments())
            if part and inspect.isgenerator(returned):
                returned = self._in_parts(returned, part)
            self.made = _copied(self.items, self._seal(returned))
        except BaseException as error:  # described here: a future cannot carry ``StopIteration``
            self.made = describe(error)

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
                # In these threads they do not wait behind uploads.
                self.task.threads.run(partial(_copied, self.items, made), partial(_resolve, copied))
                made = await copied
            self.made = made
        except BaseException as error:  # ``SystemExit`` would end the event loop
            if self.given_up is not None and isinstance(error, asyncio.CancelledError):
                raise  # ours; any other is the function's own, and so a failure
            self.made = describe(error)

    def _in_parts(self, generator: Generator[Any, Any, Any], put: Callable[[bytes], None]) -> Any:
        """Return all that ``generator`` yields and ``put`` each part; close it once the attempt is given up."""
        parts = []
        with closing(generator):
            for part in generator:
                if self.given_up is not None:
                    break
                if not find(part):  # files are in the result only
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
                if time.monotonic() > turn + LONGEST_TURN:  # it may await nothing itself
                    await asyncio.sleep(0)
                    turn = time.monotonic()
        return _whole(parts)

    def _part(self, part: bytes) -> None:
        [item] = self.items
        if self.given_up is None and item.work.parts:
            item.work.parts.add(item.index, part)

    def _say_where(self) -> None:
        """Set the job and the item that are named in what the task logs."""
        job_ids = {item.work.job_id for item in self.items}
        index = self.items[0].index if len(self.items) == 1 else None
        in_call.set((self.items[0].work.job_id if len(job_ids) == 1 else None, index))

    def _arguments(self) -> list[Any]:
        """Return the function's arguments. A batch is copied: if it fails, its halves must get the items unchanged.

        The ``job`` of a batch has the items of this call, of whichever jobs, and the options that those have in common.
        """
        items = [item.work.items[item.place] for item in self.items]
        contexts = [item.context for item in self.items] if self.task.with_context else []
        job = self.items[0].work.request
        if not self.task.batched:
            return [items[0], job, *contexts]
        if len(items) > 1:
            with suppress(BaseException):  # items that cannot be copied are passed as they are
                items = copy.deepcopy(items)
        if isinstance(job, BaseModel):
            job = job.model_copy(update={"items": list(items)})
            for name in vars(job).keys() - type(job).model_fields.keys():  # cached properties: of other items
                del vars(job)[name]
        return [items, job, contexts] if self.task.with_context else [items, job]

    def _seal(self, returned: Any) -> list[Made]:
        if not self.task.batched:
            return [_sealed(self.items[0], returned)]
        if not isinstance(returned, list | tuple) and not hasattr(returned, "tolist"):
            found = f"{type(returned).__name__} instead of a list"
        elif len(returned) != len(self.items):
            found = counted(len(returned), "result")
        else:
            return [_sealed(item, value) for item, value in zip(self.items, returned, strict=True)]
        message = f"process_batch returned {found} for {counted(len(self.items), 'item')}."
        return [failure(item.index, "WrongResults", message) for item in self.items]


def _whole(parts: list[Any]) -> Any:
    return "".join(parts) if all(isinstance(part, str) for part in parts) else parts


def _sealed(item: Item, value: object) -> Made:
    try:
        if isinstance(value, dict) and value.get("refresh_worker"):  # as in a plain handler (SDK, ``rp_job``)
            item.work.output.refresh_worker = True
            value = {name: inner for name, inner in value.items() if name != "refresh_worker"}
        return find(value) or success(item.index, value)
    except BaseException as error:  # the task's own types may raise anything
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
    log.error(f"The result of item {item.index} cannot be sent", item.work.job_id, raised.trace)
    return raised.outcome(item.index)


def _resolve(future: "asyncio.Future[list[Made]]", made: list[Made]) -> None:
    if not future.done():
        future.set_result(made)
