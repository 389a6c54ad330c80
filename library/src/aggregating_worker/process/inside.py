"""The side of a process in which the task is imported, and the process that it forks for ``load`` and the calls.

The first imports ``task`` and runs nothing. After a crash it forks another, so that nothing is imported twice. Where
the import has left threads behind, or CUDA in use, a fork would not work: then it runs the calls itself, and the worker
starts another when it dies.
"""

import asyncio
import ctypes
import importlib
import inspect
import json
import logging
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import Any, NoReturn

from aggregating_worker import before_sdk
from aggregating_worker.context import Where
from aggregating_worker.outcome.result import Raised, describe
from aggregating_worker.process.devices import uses_gpu
from aggregating_worker.process.folders import Folders, remove
from aggregating_worker.process.function import TaskFunction
from aggregating_worker.process.log import TaskLog
from aggregating_worker.process.run import Runner, awaited
from aggregating_worker.process.threads import Threads
from aggregating_worker.process.wire import Ask, Frames, Say, frame, values

REPORT = struct.Struct("!ci")
"""``P`` and the id of the process that runs calls, or ``E`` and the status with which it has ended."""
AT_ONCE = 4
"""Frames that are sent together, at most: the other side begins with them while more are made."""
READ = 262_144
"""Bytes that are read at once."""
PR_SET_PDEATHSIG = 1
"""From <linux/prctl.h>."""
FIRST_TO_DIE = "1000"
"""For ``oom_score_adj``: when memory runs out, the kernel ends this process rather than the worker."""
NO_DEBUGGER = "breakpoint() needs PROCESSES=0: then the task runs in the worker, which has the terminal."


def main() -> NoReturn:
    """Be a process that has been started, and not forked: import the task, and serve it."""
    given = json.loads(sys.argv[1])
    sys.argv[:], sys.path[:] = given["argv"], given["path"]
    before_sdk.prepare()
    task: ModuleType | Raised
    try:
        task = importlib.import_module(given["task"])
    except BaseException as error:  # ``sys.exit()`` among them
        task = describe(error)
    serve(socket.socket(fileno=given["control"]), given["worker"], task, Folders(given["folders"]))


def serve(control: socket.socket, worker: int, task: ModuleType | Raised, folders: Folders) -> NoReturn:
    """For each socket that comes through ``control``, run calls of ``task`` in a process of its own."""
    _end_with(worker, signal.SIGTERM)
    control.set_inheritable(False)
    control.settimeout(None)  # whatever the task has set for new sockets
    with suppress(OSError):  # it leads a session already
        os.setsid()
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(ending, signal.SIG_DFL)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(FIRST_TO_DIE)
    sys.breakpointhook = _no_breakpoint
    while True:
        received: list[int] = []
        with suppress(OSError):
            _, received, *_ = socket.recv_fds(control, 1, 1)
        if not received:  # the worker has ended
            os._exit(0)
        channel = socket.socket(fileno=received[0])
        channel.settimeout(None)
        if not can_fork():
            _report(control, b"P", os.getpid())
            _end_with(worker, signal.SIGKILL)
            Inside(folders, channel, control).run(task)
        sys.stdout.flush()
        sys.stderr.flush()
        this = os.getpid()
        if not (child := os.fork()):
            os.setpgid(0, 0)
            _end_with(this, signal.SIGKILL)
            control.close()
            Inside(folders, channel).run(task)
        channel.close()
        with suppress(OSError):  # the child has done it already, or has ended
            os.setpgid(child, child)
        signal.signal(signal.SIGTERM, partial(_end_group, child, folders.of(child)))  # the worker has ended
        _report(control, b"P", child)
        _, status = os.waitpid(child, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _report(control, b"E", os.waitstatus_to_exitcode(status))


def _report(control: socket.socket, kind: bytes, value: int) -> None:
    with suppress(OSError):  # the worker has ended, which is noticed next
        control.sendall(REPORT.pack(kind, value))


class Inside:
    """What runs calls for the worker at the other end of ``channel``.

    A process that the task forks lets go of ``channel``, and of ``others``: else the worker would not notice the end of
    this one.
    """

    def __init__(self, folders: Folders, channel: socket.socket, *others: socket.socket) -> None:
        self._folders = folders.of(os.getpid())
        self._channel = channel
        self._lock = threading.RLock()
        self._frames = Frames(Ask)
        self._most = 1
        self._todo: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        """For the main thread of a task that blocks: calls, and None at the end."""
        self._descriptors = (channel, *others)
        self._busy = self._silent = False
        self._later: deque[bytes] = deque()
        os.register_at_fork(after_in_child=self._be_a_child)

    def _be_a_child(self) -> None:
        """In a process that the task has forked: what that logs goes to its standard error, and no progress goes on."""
        self._silent = True
        for descriptor in self._descriptors:
            descriptor.close()
        logging.root.handlers = [each for each in logging.root.handlers if type(each) is not TaskLog]
        logging.root.addHandler(logging.StreamHandler())

    def run(self, task: ModuleType | Raised) -> NoReturn:
        """Load ``task`` and run calls, until the worker has ended or says that this is the end."""
        TaskLog(self._log).install()
        status = 1
        try:
            if isinstance(task, Raised):
                self._say(frame(Say.UNUSABLE, 0, values(*astuple(task))))
            else:
                function = TaskFunction.of(task)
                (self._run_async if function.is_async else self._run_blocking)(task, function)
                status = 0
        except Unusable as unusable:
            self._say(frame(Say.UNUSABLE, 1, values(*astuple(unusable.raised))))
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):
                    stream.flush()
            os._exit(status)

    def _run_blocking(self, task: ModuleType, function: TaskFunction) -> None:
        threads: list[Threads] = []

        def block(call: Callable[[], None]) -> None:
            if self._most == 1:
                self._todo.put(call)
            else:
                threads[:] = threads or [Threads(self._most)]
                threads[0].run(call)

        runner = Runner(function, self._folders, self._say, block)
        threading.Thread(target=self._read, args=(runner,), name="worker", daemon=True).start()
        began = time.monotonic()
        self._set_up(task, asyncio.run)
        self._say(frame(Say.READY, 0, values(time.monotonic() - began)))
        while call := self._todo.get():
            call()
        self._take_down(task, asyncio.run)

    def _run_async(self, task: ModuleType, function: TaskFunction) -> None:
        with asyncio.Runner() as loop:
            began = time.monotonic()
            loop.get_loop()  # for what a plain ``load`` makes for it
            self._set_up(task, loop.run)
            try:
                loop.run(self._serve(function, time.monotonic() - began))
            except BaseException:  # an asyncio task of a call's has ended the loop, as ``SystemExit`` does
                os._exit(1)
            self._take_down(task, loop.run)

    async def _serve(self, function: TaskFunction, seconds: float) -> None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        said: list[bytes] = []

        def send() -> None:
            if said:
                self._say(b"".join(said))
                said.clear()

        def say(frames: bytes) -> None:
            """Send what is said in the same turn of the event loop together; from a thread, at once."""
            if threading.current_thread() is not threading.main_thread():
                self._say(frames)
                return
            if not said:
                loop.call_soon(send)
            said.append(frames)
            if len(said) == AT_ONCE:
                send()

        runner = Runner(function, self._folders, say, lambda call: call())

        def read() -> None:
            if not self._read_once(runner):
                loop.remove_reader(self._channel)
                ended.set()

        loop.add_reader(self._channel, read)
        self._say(frame(Say.READY, 0, values(seconds)))
        await ended.wait()

    def _set_up(self, task: ModuleType, run: Callable[..., Any]) -> None:
        try:
            if inspect.isawaitable(loading := task.load()):
                run(awaited(loading))
        except BaseException as error:
            raise Unusable(describe(error)) from None

    def _take_down(self, task: ModuleType, run: Callable[..., Any]) -> None:
        try:
            if (unload := getattr(task, "unload", None)) and inspect.isawaitable(unloading := unload()):
                run(awaited(unloading))
        except BaseException as error:
            self._log(Where(), "ERROR", f"unload() failed\n{describe(error).trace}")

    def _read(self, runner: Runner) -> None:
        while self._read_once(runner):
            pass
        self._todo.put(None)

    def _read_once(self, runner: Runner) -> bool:
        """Do what the worker asks; return whether this goes on. Blocks until there is something."""
        try:
            if not (data := self._channel.recv(READ)):  # the worker has ended: nobody waits for anything here
                remove(self._folders.found())
                os._exit(1)
            for kind, number, payload in self._frames.feed(data):
                if kind == Ask.END:
                    return False
                if kind == Ask.BEGIN:
                    self._most = number
                else:
                    runner.take(kind, number, payload)
        except BaseException:  # no memory for it, or the socket is closed: the worker must not wait
            os._exit(1)
        return True

    def _say(self, frames: bytes) -> None:
        if self._silent:
            return
        with self._lock:
            self._later.append(frames)
            if self._busy:  # this is a signal handler, in the middle of what follows
                return
            self._busy = True
            try:
                while self._later:
                    self._channel.sendall(self._later.popleft())
            except OSError:
                os._exit(1)
            finally:
                self._busy = False

    def _log(self, where: Where, level: str, message: str) -> None:
        self._say(frame(Say.LOGGED, where.call, values(level, message, where.job_id)))


class Unusable(Exception):
    """The task cannot be used."""

    def __init__(self, raised: Raised) -> None:
        super().__init__()
        self.raised = raised


def _end_group(leader: int, folders: Folders, *_: object) -> None:
    """End a process with what it has started, and this one; remove the ``folders`` that it leaves."""
    with suppress(OSError):
        os.killpg(leader, signal.SIGKILL)
        os.waitpid(leader, 0)
    with suppress(Exception):
        remove(folders.found())
    os._exit(1)


def _end_with(parent: int, ending: signal.Signals) -> None:
    """Have the kernel send this process a signal when ``parent`` ends: it may hold the GIL and not notice."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ending)
    if os.getppid() != parent:
        os._exit(1)


def can_fork() -> bool:
    """Whether a fork of this process would work as this one does: no thread is lost, and no GPU."""
    if sys.platform != "linux" or uses_gpu() or threading.active_count() > 1:
        return False
    if _threads() > 1:  # those of OpenBLAS, which NumPy has, end where a process forks, and come again
        if not (child := os.fork()):
            os._exit(0)
        os.waitpid(child, 0)
    return _threads() == 1


def _threads() -> int:
    return len([*Path("/proc/self/task").iterdir()])


def _no_breakpoint(*_: object, **__: object) -> NoReturn:
    raise RuntimeError(NO_DEBUGGER)
