"""Runs calls of the task's function, in a process of its own or beside the worker's loop, and says what came of them.

One at a time, a blocking function runs in the main thread, which ran ``load``; several at once, in threads. An async
one runs on the process's one event loop.
"""

import asyncio
import codecs
import contextvars
import inspect
import pickle
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from contextlib import aclosing, closing, suppress
from dataclasses import astuple, dataclass, field
from functools import partial
from itertools import islice
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel

from aggregating_worker.context import Context, Updates, Where, folders_of, in_call
from aggregating_worker.outcome.files import Unencoded
from aggregating_worker.outcome.result import (
    describe,
    encoded_value,
    failure,
    is_error,
    returned_error,
    seal,
    with_files,
)
from aggregating_worker.process.folders import Folders, remove
from aggregating_worker.process.function import TaskFunction
from aggregating_worker.process.threads import Threads
from aggregating_worker.process.wire import PLACE, Ask, Flag, Say, frame, outcome, values
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
    contexts: list[Context] = field(default_factory=list)
    """One for each item, if the function takes them."""

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
        self,
        task: TaskFunction,
        folders: Folders,
        say: Callable[[bytes], None],
        block: Callable[[Callable[[], None]], None],
    ) -> None:
        self._task = task
        self._folders = folders
        self._say = say
        self._block = block
        self._encoders = Threads(ENCODERS)
        self._copiers = Threads()  # in these, copies of files do not wait for others to be encoded
        self._jobs: dict[int, Job] = {}
        self._calls: dict[int, Call] = {}
        self._first = iter([True])
        """For one line in the log about a progress that cannot be sent, whichever thread comes first."""
        Updates.hear = self._update

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
            call.running.add_done_callback(lambda _: self._leave(call))
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
        remove(folders_of(call.contexts))
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

    def _leave(self, call: Call) -> None:
        """End the call of an async function, once the folders of its items are removed, in a thread."""
        if not (folders := folders_of(call.contexts)):
            self._end(call)
            return
        loop = asyncio.get_running_loop()

        def leave() -> None:
            remove(folders)
            with suppress(RuntimeError):  # the loop is closed: nobody waits for this
                loop.call_soon_threadsafe(self._end, call)

        try:
            self._copiers.run(leave)
        except RuntimeError:  # no thread could be started
            leave()

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
        parts = Parts()
        with closing(generator):
            for part in generator:
                if call.given_up:
                    break
                if is_error(part):
                    return part
                self._parts(call, parts.add(part))
        self._parts(call, parts.end())
        return parts.whole

    async def _in_parts_async(self, call: Call, generator: AsyncGenerator[Any, Any]) -> Any:
        parts = Parts()
        turn = time.monotonic()
        async with aclosing(generator):
            async for part in generator:
                if is_error(part):
                    return part
                self._parts(call, parts.add(part))
                if time.monotonic() > turn + LONGEST_TURN:  # it may await nothing itself
                    await asyncio.sleep(0)
                    turn = time.monotonic()
        self._parts(call, parts.end())
        return parts.whole

    def _parts(self, call: Call, parts: Iterable[Any]) -> None:
        for part in parts:
            if not call.given_up and (said := encoded_value("part", part)):  # files are in the result only
                self._say(frame(Say.PART, call.number, said))

    def _progress(self, call: Call, place: int, value: Any) -> None:
        try:
            if not (said := encoded_value("progress", value)):
                raise TypeError("progress has a file in it.")
            self._say(frame(Say.PROGRESS, call.number, PLACE.pack(place), said))
        except Exception as error:  # the task's own types may raise anything
            if next(self._first, False):
                line = values("WARN", f"Not sent: {describe(error).message}", call.jobs[place].id)
                self._say(frame(Say.LOGGED, call.number, line))

    def _update(self, job_id: str, where: Where, value: Any) -> None:
        """Take what the task says by the SDK's ``progress_update``, as of the first item of that job in the call.

        In a thread of the task's own it is not known which call that is: it is taken for the job's first.
        """
        calls = filter(None, (self._calls.get(where.call), *self._calls.copy().values()))
        places = ((call, place) for call in calls for place, job in enumerate(call.jobs) if job.id == job_id)
        for call, place in islice(places, 1):
            self._progress(call, place, value)

    def _arguments(self, call: Call) -> list[Any]:
        """Return the function's arguments: the ``job`` of a call has the items of that call, of whichever jobs."""
        items = [*map(pickle.loads, call.items)]
        job = pickle.loads(call.jobs[0].options)  # noqa: S301
        if isinstance(job, BaseModel):
            vars(job)["items"] = list(items)
        first = items if self._task.batched else items[0]
        if not self._task.with_context:
            return [first, job]
        call.contexts = [
            Context(each.id, call.indices[place], each.sent, self._folders.make, partial(self._progress, call, place))
            for place, each in enumerate(call.jobs)
        ]
        return [first, job, call.contexts if self._task.batched else call.contexts[0]]

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
            if is_error(value):
                return flags & ~Flag.SUCCESS, [returned_error(call.indices[place], value).encoded]
            made = seal(call.indices[place], value)
            return flags, made if isinstance(made, Unencoded) else [made.encoded]
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


class Parts:
    """What an item yields. Half of a surrogate pair at the end of a text waits for its other half."""

    def __init__(self) -> None:
        self._all: list[Any] = []
        self._texts = codecs.getincrementaldecoder("utf-16-le")("surrogatepass")

    def add(self, part: Any) -> list[Any]:
        """Take a part; return what can be sent now."""
        if not isinstance(part, str):
            return [*self.end(), *self._took(part)]
        text = self._texts.decode(part.encode("utf-16-le", "surrogatepass"))
        return self._took(text) if text or not part else []

    def end(self) -> list[Any]:
        """Return the half that waits in vain, if there is one."""
        text = self._texts.decode(b"", final=True)
        return self._took(text) if text else []

    def _took(self, part: Any) -> list[Any]:
        self._all.append(part)
        return [part]

    @property
    def whole(self) -> Any:
        """The item's result: one text if every part is one, else the list of parts."""
        return "".join(self._all) if all(isinstance(part, str) for part in self._all) else self._all
