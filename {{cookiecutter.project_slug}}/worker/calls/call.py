"""One call of the task after another in one slot: a list of items, and if it fails, its halves."""

import asyncio
import copy
import inspect
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from pydantic import BaseModel

from worker import log
from worker.calls import subtasks
from worker.calls.function import Task
from worker.calls.parts import Inbox
from worker.calls.work import Work
from worker.context import Context, in_call
from worker.outcome.files import Unencoded, find
from worker.outcome.result import Envelope, Raised, describe, encoded_part, failure, success

LET_GO_AFTER = 1.0
"""Seconds that a cancelled async call has to clean up."""
LONGEST_TURN = 0.01
"""Seconds for which an async generator may yield and await nothing."""
SETTLED_AT_ONCE = 4
"""Items of a call whose outcomes are handed on before the event loop has its turn."""

Made = Envelope | Unencoded


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

    def settle(self, envelope: Envelope) -> None:
        """Give the item its outcome."""
        self.work.settle(self.place, envelope)


@dataclass(eq=False)
class Call:
    """A slot in use, from the items it is given to ``ended``.

    A batch that raises is halved, and the halves are tried, until the guilty items are alone. Whatever the task does,
    each item is settled: by the call, by its time running out, or by nobody if its job is over.
    """

    task: Task
    ended: Callable[["Call"], None]
    gave_up: Callable[[list[list[Item]]], None]
    """Called with what is left to be tried, in other slots."""
    items: list[Item] = field(default_factory=list)
    """What is being tried."""
    given_up: float | None = None
    """Since when nobody waits for what is being tried, in seconds of ``time.monotonic``."""
    _left: list[list[Item]] = field(default_factory=list)
    _outcome: list[list[Made] | Raised] = field(default_factory=list)
    _running: "asyncio.Task[None] | None" = None
    _timer: asyncio.TimerHandle | None = None

    def start(self, items: list[Item]) -> None:
        """Begin with ``items``."""
        self._left.append(items)
        self._go_on()

    def drop(self, work: Work) -> "asyncio.Task[None] | None":
        """Give up if nobody but ``work``, which is over, had items in what is being tried; return what is to end."""
        if not any(item.work is work for item in self.items) or any(item.work.alive for item in self.items):
            return None
        if self.given_up is None:
            self._give_up()
        return self._running

    def _go_on(self) -> None:
        while self._left:
            self.items = [item for item in self._left.pop() if item.work.alive]
            if self.items:
                return self._try()
        self.items = []
        return self.ended(self)

    def _try(self) -> None:
        loop = asyncio.get_running_loop()
        self.given_up, self._outcome = None, []
        if self.task.timeout:
            self._timer = loop.call_later(self.task.timeout * len(self.items), self._expire)
        if self.task.is_async:
            # Not through the loop's task factory, and never awaited: whatever the function does to it ends with it.
            self._running = asyncio.Task(self._await())
            self._running.add_done_callback(lambda _: self._tried())
            return
        part = Inbox(self._part).put if self.task.in_parts else None
        try:
            self.task.threads.run(partial(self._block, part), lambda _: self._tried())
        except RuntimeError as error:  # no thread could be started
            self._outcome.append(describe(error))
            loop.call_soon(self._tried)

    def _block(self, part: Callable[[bytes], None] | None) -> None:
        self._say_where()
        try:
            returned = self.task.function(*self._arguments())
            if part and inspect.isgenerator(returned):
                returned = self._in_parts(returned, part)
            self._outcome.append(_copied(self.items, self._seal(returned)))
        except BaseException as error:  # described here: a future cannot carry ``StopIteration``
            self._outcome.append(describe(error))

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
                # Not behind uploads; and of the items of now, since by then others may be what is being tried.
                self.task.threads.run(partial(_copied, self.items, made), partial(_resolve, copied))
                made = await copied
            self._outcome.append(made)
        except BaseException as error:  # a task lets ``SystemExit`` end the event loop
            if isinstance(error, asyncio.CancelledError) and self.given_up is not None:
                raise  # ours; any other comes from the function itself, and is a failure like the rest
            self._outcome.append(describe(error))

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
        """Tell the log whose call this is."""
        job_ids = {work.job_id for work, _ in self.items}
        index = self.items[0].number if len(self.items) == 1 else None
        in_call.set((self.items[0].work.job_id if len(job_ids) == 1 else None, index))

    def _arguments(self) -> list[Any]:
        """Return what the function gets: copies of a batch's items, so that it cannot change what a half would get.

        For items of several jobs, the second is what those have in common, with these items.
        """
        items = [work.items[place] for work, place in self.items]
        contexts = [item.context for item in self.items] if self.task.with_context else []
        job = self.items[0].work.job
        if not self.task.batched:
            return [items[0], job, *contexts]
        if len(items) > 1:
            with suppress(BaseException):  # what cannot be copied is given as it is
                items = copy.deepcopy(items)
        if isinstance(job, BaseModel) and len({work for work, _ in self.items}) > 1:
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

    def _tried(self) -> None:
        if self._timer:
            self._timer.cancel()
        outcome, self._running, self._outcome = self._outcome, None, []
        if self.given_up is not None or not outcome:
            self._go_on()
        elif isinstance(outcome[0], Raised):
            self._fail(outcome[0])
            self._go_on()
        else:
            self._settle(zip(self.items, outcome[0], strict=True))

    def _fail(self, raised: Raised) -> None:
        if len(self.items) == 1:
            [item] = self.items
            log.error(f"Item {item.number} failed", raised, item.work.job_id)
            item.settle(raised.envelope(item.number))
        else:
            log.error(f"A batch of {len(self.items)} failed; now its halves", raised, self.items[0].work.job_id)
            half = len(self.items) // 2
            self._left += [self.items[half:], self.items[:half]]

    def _settle(self, outcomes: "zip[tuple[Item, Made]]") -> None:
        """Settle some items, and then others: the jobs of the first are on their way out while the others follow."""
        some = list(islice(outcomes, SETTLED_AT_ONCE))
        for item, made in some:
            if isinstance(made, Envelope):
                item.settle(made)
            else:
                self.task.finishers.run(partial(item.work.output.seal, item.number, made), item.settle)
        if len(some) == SETTLED_AT_ONCE:
            asyncio.get_running_loop().call_soon(self._settle, outcomes)
        else:
            self._go_on()

    def _expire(self) -> None:
        message = f"No result within {self.task.timeout:g} s per item (ITEM_TIMEOUT)."
        for item in self.items:
            item.settle(failure(item.number, "TimeoutError", message))
        self._give_up()

    def _give_up(self) -> None:
        """Wait no longer; an async call is cancelled, a blocking one keeps the slot until it returns."""
        self.given_up = time.monotonic()
        if self._running and self._running.cancel():
            # If it will not, leave it: the event loop must not wait for it to close.
            loop = asyncio.get_running_loop()
            loop.call_later(LET_GO_AFTER, partial(asyncio._unregister_task, self._running))
        left, self._left = self._left[::-1], []
        self.gave_up(left)


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
    return [one if isinstance(one, Envelope) else _copy(item, one) for item, one in zip(items, made, strict=True)]


def _copy(item: Item, made: Unencoded) -> Made:
    try:
        made.take()
    except BaseException as error:
        return _unsendable(item, error)
    return made


def _unsendable(item: Item, error: BaseException) -> Envelope:
    raised = describe(error)
    log.error(f"The result of item {item.number} cannot be sent", raised, item.work.job_id)
    return raised.envelope(item.number)


def _resolve(future: "asyncio.Future[list[Made]]", made: list[Made]) -> None:
    if not future.done():
        future.set_result(made)
