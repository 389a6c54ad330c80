"""Runs calls of the task's function, in a process of its own or beside the worker's loop, and says what came of them.

One at a time, a blocking function runs in the main thread, which ran ``load``; several at once, in threads. An async
one runs on the process's one event loop.
"""

import asyncio
import contextvars
import inspect
import pickle
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import aclosing, closing
from dataclasses import astuple, dataclass, field
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel

from aggregating_worker.context import Context, Where, in_call
from aggregating_worker.outcome.files import Unencoded, find
from aggregating_worker.outcome.result import describe, encoded_part, failure, success, with_files
from aggregating_worker.process.function import TaskFunction
from aggregating_worker.process.threads import Threads
from aggregating_worker.process.wire import Ask, Flag, Say, frame, outcome, values
from aggregating_worker.sentence import counted

ENCODERS = 16
"""Threads that encode files while the next call runs."""
LONGEST_TURN = 0.01
"""Seconds for which an async generator may keep the event loop."""


@dataclass
class Job:
    """What every call for the job needs of it."""

    id: str
    options: bytes
    sent: MappingProxyType[str, Any]


Made = tuple[int, list[bytes] | Unencoded]
"""An item's outcome: ``Flag`` values, and its envelope or, of a result with files, what is still to be encoded."""


@dataclass(eq=False)
class Call:
    """A call under way: its pickled items, and the job and the index of each."""

    number: int
    items: list[bytes]
    jobs: list[Job]
    indices: list[int]
    given_up: bool = False
    running: "asyncio.Task[None] | None" = None
    """Its asyncio task, if the function is async."""
    made: list[Made] = field(default_factory=list)

    @property
    def where(self) -> Where:
        """What is named in lines that the task logs."""
        shared = len({job.id for job in self.jobs}) > 1
        return Where(
            self.number, None if shared else self.jobs[0].id, self.indices[0] if len(self.items) == 1 else None
        )


class Runner:
    """Runs the calls that it is asked for, and has ``say`` send what comes of them; any thread may call that.

    ``block`` runs what blocks: in the main thread, or in one of several. An async function runs on the running loop.
    """

    def __init__(
        self, task: TaskFunction, say: Callable[[bytes], None], block: Callable[[Callable[[], None]], None]
    ) -> None:
        self._task = task
        self._say = say
        self._block = block
        self._encoders = Threads(ENCODERS)
        self._copiers = Threads()  # in these, copies of files do not wait for others to be encoded
        self._jobs: dict[int, Job] = {}
        self._calls: dict[int, Call] = {}

    def take(self, kind: int, number: int, payload: bytes, context: contextvars.Context | None = None) -> None:
        """Do what a frame asks; a call runs in a copy of ``context``, or else in a new one."""
        match kind:
            case Ask.JOB:
                job_id, options, sent = pickle.loads(payload)  # noqa: S301  # the worker's own
                self._jobs[number] = Job(job_id, options, MappingProxyType(sent))
            case Ask.FORGET:
                self._jobs.pop(number, None)
            case Ask.PING:
                self._say(frame(Say.PONG, number))
            case Ask.CANCEL:
                if call := self._calls.get(number):
                    call.given_up = True
                    if call.running:
                        call.running.cancel()
            case Ask.CALL:
                items, places = pickle.loads(payload)  # noqa: S301
                call = Call(number, items, [self._jobs[job] for job, _ in places], [index for _, index in places])
                self._calls[number] = call
                self._start(call, context.copy() if context else contextvars.Context())

    def _start(self, call: Call, context: contextvars.Context) -> None:
        context.run(in_call.set, call.where)
        if self._task.is_async:
            call.running = asyncio.get_running_loop().create_task(self._await(call), context=context)
            call.running.add_done_callback(lambda _: self._end(call))
            return
        try:
            self._block(lambda: context.run(self._run, call))
        except RuntimeError as error:  # no thread could be started
            self._raised(call, error)
            self._end(call)

    def _run(self, call: Call) -> None:
        try:
            returned = self._task.function(*self._arguments(call))
            if self._task.in_parts and inspect.isgenerator(returned):
                returned = self._in_parts(call, returned)
            made = self._seal(call, returned)
            self._copy(call, made)
            call.made = made
        except BaseException as error:
            self._raised(call, error)
        self._end(call)

    async def _await(self, call: Call) -> None:
        try:
            returned = self._task.function(*self._arguments(call))
            if inspect.isasyncgen(returned):
                returned = await self._in_parts_async(call, returned)
            elif inspect.isawaitable(returned):
                returned = await returned
            made = self._seal(call, returned)
            if any(isinstance(one, Unencoded) for _, one in made):
                await self._copied(call, made)
            call.made = made
        except BaseException as error:  # ``SystemExit`` would end the event loop
            if not (call.given_up and isinstance(error, asyncio.CancelledError)):
                self._raised(call, error)

    async def _copied(self, call: Call, made: list[Made]) -> None:
        loop, copied = asyncio.get_running_loop(), asyncio.Event()

        def copy() -> None:
            self._copy(call, made)
            loop.call_soon_threadsafe(copied.set)

        self._copiers.run(copy)
        await copied.wait()

    def _end(self, call: Call) -> None:
        """Say what has been made and that the function has returned; results with files in them follow."""
        del self._calls[call.number]
        if call.given_up:  # what it has returned may be half of a result
            call.made = []
        ready = [(place, flags, one) for place, (flags, one) in enumerate(call.made) if isinstance(one, list)]
        frames = [outcome(call.number, place, flags, pieces) for place, flags, pieces in ready]
        more = b"+" * (len(frames) < len(call.made))
        self._say(b"".join((*frames, frame(Say.ENDED, call.number, more))))
        for place, (flags, one) in enumerate(call.made):
            if isinstance(one, Unencoded):
                self._encode(call, place, flags | Flag.FILES, one)

    def _encode(self, call: Call, place: int, flags: int, files: Unencoded) -> None:
        def encode() -> None:
            try:
                made = outcome(call.number, place, flags, with_files(files))
            except BaseException as error:  # encoding an image, or the rest of the result, can raise anything
                made = outcome(call.number, place, *self._unsendable(call, place, error))
            self._say(made)

        try:
            self._encoders.run(encode)
        except RuntimeError:  # no thread could be started
            encode()

    def _in_parts(self, call: Call, generator: Generator[Any, Any, Any]) -> Any:
        """Return all that ``generator`` yields, and say each part; close it once the call is given up."""
        parts = []
        with closing(generator):
            for part in generator:
                if call.given_up:
                    break
                self._part(call, part)
                parts.append(part)
        return _whole(parts)

    async def _in_parts_async(self, call: Call, generator: AsyncGenerator[Any, Any]) -> Any:
        parts = []
        turn = time.monotonic()
        async with aclosing(generator):
            async for part in generator:
                self._part(call, part)
                parts.append(part)
                if time.monotonic() > turn + LONGEST_TURN:  # it may await nothing itself
                    await asyncio.sleep(0)
                    turn = time.monotonic()
        return _whole(parts)

    def _part(self, call: Call, part: Any) -> None:
        if not (call.given_up or find(part)):  # files are in the result only
            self._say(frame(Say.PART, call.number, encoded_part(part)))

    def _arguments(self, call: Call) -> list[Any]:
        """Return the function's arguments: the ``job`` of a call has the items of that call, of whichever jobs."""
        items = [*map(pickle.loads, call.items)]
        job = pickle.loads(call.jobs[0].options)  # noqa: S301
        if isinstance(job, BaseModel):
            vars(job)["items"] = list(items)
        first = items if self._task.batched else items[0]
        if not self._task.with_context:
            return [first, job]
        contexts = [Context(each.id, index, each.sent) for each, index in zip(call.jobs, call.indices, strict=True)]
        return [first, job, contexts if self._task.batched else contexts[0]]

    def _seal(self, call: Call, returned: Any) -> list[Made]:
        if not self._task.batched:
            return [self._sealed(call, 0, returned)]
        if not isinstance(returned, list | tuple) and not hasattr(returned, "tolist"):
            found = f"{type(returned).__name__} instead of a list"
        elif len(returned) != len(call.items):
            found = counted(len(returned), "result")
        else:
            return [self._sealed(call, place, value) for place, value in enumerate(returned)]
        message = f"process_batch returned {found} for {counted(len(call.items), 'item')}."
        return [(0, [failure(index, "WrongResults", message).encoded]) for index in call.indices]

    def _sealed(self, call: Call, place: int, value: object) -> Made:
        try:
            if isinstance(value, BaseException):
                return self._unsendable(call, place, value)
            flags: int = Flag.SUCCESS
            if isinstance(value, dict) and value.get("refresh_worker"):  # as in a plain handler (SDK, ``rp_job``)
                flags |= Flag.REFRESH
                value = {name: inner for name, inner in value.items() if name != "refresh_worker"}
            return flags, find(value) or [success(call.indices[place], value).encoded]
        except BaseException as error:  # the task's own types may raise anything
            return self._unsendable(call, place, error)

    def _copy(self, call: Call, made: list[Made]) -> None:
        """Copy the files in ``made``, before the task gets the next items."""
        for place, (_, one) in enumerate(made):
            if isinstance(one, Unencoded):
                try:
                    one.take()
                except BaseException as error:
                    made[place] = self._unsendable(call, place, error)

    def _unsendable(self, call: Call, place: int, error: BaseException) -> tuple[int, list[bytes]]:
        """Return the failure of an item whose result is an exception, or has led to one."""
        raised, index = describe(error), call.indices[place]
        line = values("ERROR", f"Item {index} has no result that can be sent\n{raised.trace}", call.jobs[place].id)
        self._say(frame(Say.LOGGED, call.number, line))
        flags = Flag.REFRESH * raised.refresh_worker | Flag.RESTART * bool(raised.broken)
        return flags, [raised.outcome(index).encoded]

    def _raised(self, call: Call, error: BaseException) -> None:
        call.made = []
        self._say(frame(Say.RAISED, call.number, values(*astuple(describe(error)))))


async def awaited(awaitable: Awaitable[Any]) -> None:
    """Await what the task's ``load`` or ``unload`` has returned, as a coroutine that a loop can run."""
    await awaitable


def _whole(parts: list[Any]) -> Any:
    return "".join(parts) if all(isinstance(part, str) for part in parts) else parts
