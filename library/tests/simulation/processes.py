"""The processes of the task behind their sockets, and the task: coroutines that do what each item says.

``Beside`` is the worker's side of a process, as it is. What it would have forked is here: it runs calls with the
library's own ``Runner``, on the same event loop, and may die, say half of an answer, or fall silent.
"""

import asyncio
import contextvars
import signal
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

from pydantic import BaseModel, ConfigDict

from aggregating_worker.context import Context, in_call
from aggregating_worker.failed import ItemFailed
from aggregating_worker.process.beside import Beside
from aggregating_worker.process.folders import Folders
from aggregating_worker.process.function import TaskFunction
from aggregating_worker.process.inside import READ, REPORT
from aggregating_worker.process.process import LOADS
from aggregating_worker.process.run import Runner
from aggregating_worker.process.wire import Ask, Frames, Say, frame, values
from tests.simulation.clock import World

FIRST_PID = 1 << 23
"""More than any process of this machine can have."""


class Item(BaseModel):
    """What an item does: ``what``, for so many ``seconds``, with a result of so many ``bytes``.

    At the try of number ``cancelled``, its job is cancelled while it runs.
    """

    model_config = ConfigDict(extra="forbid")
    what: str
    seconds: float = 0.0
    bytes: int = 0
    cancelled: int = 0


class Input(BaseModel):
    model_config = ConfigDict(extra="forbid")
    items: list[Item]
    option: int = 0


@dataclass(eq=False)
class Machine:
    """Where the processes of the task run."""

    world: World
    task: ModuleType
    slots: int
    batch: int
    loads_badly: float
    """How often ``load`` fails."""
    cancel: Callable[[str], None]
    """Has the platform cancel the job of this id."""
    running: "dict[int, Living]" = field(default_factory=dict)
    hopeless: bool = False
    """Whether the worker has to end, since the task cannot load."""
    deaths: int = 0
    tried: dict[tuple[str, int], int] = field(default_factory=dict)
    """How often each item has begun."""

    def process(self) -> Beside:
        """Return the worker's side of another process."""
        return Simulated(self)

    def killpg(self, pid: int, _: int) -> None:
        """Stand in for ``os.killpg``."""
        if pid not in self.running or self.running[pid].dead:
            raise ProcessLookupError
        asyncio.get_running_loop().call_soon(self.running[pid].die, -signal.SIGKILL)


class Simulated(Beside):
    """``Beside`` without a fork."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.starts = 0
        """Since a process had a call."""
        super().__init__("task", machine.task, {})
        self._folders = Folders("/nowhere/at-all")

    def _start_server(self) -> Any:
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)
        return Server(self._machine, theirs, self)


@dataclass(eq=False)
class Server:
    """What forks processes, at the other end of ``control``; to the worker it is a ``subprocess.Popen``."""

    machine: Machine
    control: socket.socket
    worker: Simulated
    returncode: int | None = None
    _child: "Living | None" = None

    def __post_init__(self) -> None:
        self.control.setblocking(False)
        asyncio.get_running_loop().add_reader(self.control, self._fork)

    def _fork(self) -> None:
        with suppress(OSError):
            if received := socket.recv_fds(self.control, 1, 1)[1]:
                self.worker.starts += 1
                self._child = Living(self, socket.socket(fileno=received[0]))
                return
        self.kill()

    def report(self, kind: bytes, value: int) -> None:
        with suppress(OSError):
            self.control.send(REPORT.pack(kind, value))

    def poll(self) -> int | None:
        return self.returncode

    def wait(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        if self.returncode is None:
            self.returncode = -signal.SIGKILL
            asyncio.get_running_loop().remove_reader(self.control)
            if self._child:
                self._child.die(-signal.SIGKILL)
            self.control.close()


class Living:
    """A process, from its fork to its death."""

    def __init__(self, server: Server, channel: socket.socket) -> None:
        self.server, self.machine, self.world = server, server.machine, server.machine.world
        self.dead = False
        self.silent_until = 0.0
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._frames = Frames(Ask)
        self._unsaid = bytearray()
        self._saying = False
        self.tasks: dict[asyncio.Task[Any] | None, None] = {}
        """Of the calls that run."""
        self.pid = FIRST_PID + len(self.machine.running)
        self.machine.running[self.pid] = self
        self._channel.setblocking(False)
        self._soon(self.world.random.choice([0.0, 0.01, 1.0]), self._begin)

    def _soon(self, seconds: float, do: Callable[..., Any], *arguments: Any) -> None:
        self._loop.call_later(seconds, lambda: None if self.dead else do(*arguments))

    def _begin(self) -> None:
        self.server.report(b"P", self.pid)
        loads = self.world.random.choice([0.0, 0.0, 0.1, 0.1, 3.0, 40.0])
        if self.world.random.random() >= self.machine.loads_badly:
            return self._soon(loads, self._ready, loads)
        if self.world.random.random() < 0.5:
            return self._soon(loads, self.die, 3)
        raised = values("OSError", "no such file", "trace")
        self._soon(loads, self._say, frame(Say.UNUSABLE, 1, raised))
        return self._soon(loads + 0.1, self.die, 1)

    def _ready(self, loads: float) -> None:
        function = TaskFunction.of(self.machine.task)
        self._runner = Runner(function, Folders("/nowhere/at-all"), self._say, lambda call: call())
        self._say(frame(Say.READY, 0, values(loads)))
        self._loop.add_reader(self._channel, self._read)

    def _read(self) -> None:
        if (wait := self.silent_until - self.world.now) > 0:
            self._loop.remove_reader(self._channel)
            return self._soon(wait, lambda: self._loop.add_reader(self._channel, self._read))
        data = b""
        with suppress(OSError):
            data = self._channel.recv(READ)
        if not data:
            return self.die(1)
        for kind, number, payload in self._frames.feed(data):
            if kind == Ask.END:
                return self._soon(self.world.random.choice([0.0, 0.5, 9.0]), self.die, 0)
            if kind == Ask.CALL:
                self.server.worker.starts = 0
            context = contextvars.Context()
            context.run(living.set, self)
            self._runner.take(kind, number, payload, context)
        return None

    def _say(self, frames: bytes) -> None:
        """Say something a moment later, after what was said before."""
        self._unsaid += frames
        if not self._saying:
            self._saying = True
            self._soon(self.world.random.choice([0.0, 0.0, 0.001, 0.05]), self._send)

    def _send(self) -> None:
        self._saying = False
        if (wait := self.silent_until - self.world.now) <= 0:
            with suppress(BlockingIOError):
                try:
                    del self._unsaid[: self._channel.send(self._unsaid)]
                except BrokenPipeError:
                    return self.die(1)
            wait = 0.001
        if self._unsaid:
            self._saying = True
            self._soon(wait, self._send)
        return None

    def tell(self, context: Context) -> None:
        """Log a line, as the task's own logging would, of the call that runs here."""
        where = in_call.get()
        self._say(frame(Say.LOGGED, where.call, values("INFO", f"{context.job_id} runs", where.job_id)))

    def die(self, status: int, *, saying: int | None = None) -> None:
        """End with a status; of what is unsaid, the first bytes may still go out."""
        if self.dead:
            return
        self.world.note(f"process {self.pid} dies with {status}")
        self.machine.hopeless |= self.server.worker.starts >= LOADS
        with suppress(OSError):
            if saying is not None:
                self._channel.send(self._unsaid[:saying])
        self.dead = True
        if self._channel.fileno() >= 0:
            self._loop.remove_reader(self._channel)
        self._channel.close()
        for task in filter(None, self.tasks):
            task.cancel()
        late = self.world.random.choice([0.0, 0.01, 1.0])
        self._loop.call_later(late, self.server.report, b"E", status)
        if self.world.random.random() < 0.05:
            self._loop.call_later(late, self.server.kill)


living: contextvars.ContextVar[Living] = contextvars.ContextVar("living")
"""The process in which this runs."""


class Dead(BaseException):
    """The process has ended."""


async def do(item: Item, context: Context, *, alone: bool) -> Any:
    """Do what an item says, and return its result."""
    here = living.get()
    key = context.job_id, context.index
    tries = here.machine.tried[key] = here.machine.tried.get(key, 0) + 1
    here.tell(context)
    await asyncio.sleep(item.seconds)
    mine = f"{context.job_id}:{context.index}"
    if tries == item.cancelled:
        here.machine.cancel(context.job_id)
        await asyncio.sleep(0.7)  # the worker hears of it, and lets the call go on if it has items of other jobs
    match item.what:
        case "raises":
            raise ValueError(mine)
        case "is an exception" if not alone:
            return ValueError(mine)
        case "asks for a restart":
            raise ItemFailed(mine, restart=True)
        case "loses the GPU":
            raise RuntimeError(f"CUDA error: {mine}")
        case "returns an error":
            return {"error": mine}
        case "dies" | "dies once" | "says half and dies":
            if item.what != "dies once" or tries == 1:
                half = None
                if item.what == "says half and dies":
                    here._unsaid += frame(Say.MADE, 0, b"half of it")
                    half = len(here._unsaid) - 3
                here.machine.deaths += 1
                here.die(here.machine.deaths, saying=half)
        case "hangs":
            await asyncio.sleep(1e6)
        case "never lets go":
            while not here.dead:
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(1e6)
        case "holds the GIL":
            here.silent_until = here.world.now + 1e6
            await asyncio.sleep(1e6)
        case "holds the GIL once" if tries == 1:
            here.silent_until = here.world.now + 4.0
        case "asks for a new worker":
            return {"mine": mine, "refresh_worker": True}
        case "is a file":
            return {"mine": mine, "file": mine.encode()}
        case "tells":
            for part in range(3):
                context.progress({"mine": mine, "part": part})
                await asyncio.sleep(0.1)
    if here.dead:
        raise Dead
    return {"mine": mine, "more": "x" * item.bytes}


async def process(item: Item, job: Input, context: Context) -> Any:
    return await entered([item], do(item, context, alone=True))


async def process_parts(item: Item, job: Input, context: Context) -> AsyncGenerator[Any, None]:
    yield f"{context.job_id}:{context.index} "
    await asyncio.sleep(item.seconds / 2)
    yield "and "
    yield str(await entered([item], do(item, context, alone=True)))


async def process_batch(items: list[Item], job: Input, contexts: list[Context]) -> list[Any]:
    async def each() -> list[Any]:
        return [await do(item, context, alone=False) for item, context in zip(items, contexts, strict=True)]

    return list(await entered(items, each()))


async def entered(items: list[Item], doing: Any) -> Any:
    """Run a call in its process, which has no more of them at once than it should, and no larger ones."""
    here, this = living.get(), asyncio.current_task()
    here.tasks[this] = None
    try:
        fits = len(here.tasks) <= here.machine.slots and len(items) <= here.machine.batch
        here.world.check(fits, f"{len(here.tasks)} calls at once, of {len(items)} items")
        return await doing
    finally:
        del here.tasks[this]


def task(kind: str) -> Any:
    """Return the task as a module."""
    functions: dict[str, Any] = {"one": process, "parts": process_parts, "batch": process_batch}
    name = "process_batch" if kind == "batch" else "process"
    return SimpleNamespace(load=lambda: None, Input=Input, **{name: functions[kind]})
