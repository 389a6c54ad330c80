"""A process beside the worker: how it is started, heard and ended."""

import contextvars
import gc
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from weakref import WeakSet

from aggregating_worker import log
from aggregating_worker.process.folders import Folders, remove
from aggregating_worker.process.inside import AT_ONCE, READ, REPORT, can_fork, serve
from aggregating_worker.process.process import LOADS, STILL_LOADING, UNLOAD_WITHIN, Owner, Process
from aggregating_worker.process.wire import Ask, Frames, Say, frame
from aggregating_worker.refusal import Refused

REAP_EVERY = 0.02
"""Seconds between two looks at whether a process that was killed has ended."""
START = "from aggregating_worker.process.inside import main; main()"


@dataclass
class Forked:
    """A fork of this process, as ``subprocess.Popen`` has one that it has started."""

    pid: int
    returncode: int | None = None

    def poll(self) -> int | None:
        """Return its status, or None if it has not ended."""
        return self._wait(os.WNOHANG)

    def wait(self) -> int | None:
        """Return its status once it has ended."""
        return self._wait(0)

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def kill(self) -> None:
        """End it now."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)


class Beside(Process):
    """A process of its own that runs ``task``, the module ``name``, with ``share`` in its environment.

    Make it in the main thread: the kernel ends what a thread has started when that ends.
    """

    def __init__(self, name: str, task: ModuleType, share: dict[str, str]) -> None:
        super().__init__()
        self._name = name
        self._task = task
        self._share = share
        self._folders = Folders.new()
        self._server: subprocess.Popen[bytes] | Forked | None = None
        self._pid = 0
        with socket.socket() as none:
            self._channel = self._control = none  # until there are others
        self._unsent = bytearray()
        self._sending = False
        self._waiting = 0
        self._stopped = False
        _made.add(self)
        self._start_again()

    def _start(self) -> None:
        self._lives += 1
        self._known.clear()
        self._unsent.clear()
        self._sending = False
        self._frames, self._pid, self._fault = Frames(Say), 0, ""
        if self._server is None:  # before the next two are made: it must not keep them open
            self._server = self._start_server()
        self._channel, theirs = socket.socketpair()
        self._channel.setblocking(False)
        with theirs:
            socket.send_fds(self._control, [b"+"], [theirs.fileno()])
        self._loads += 1
        self._listen()

    def _start_server(self) -> "subprocess.Popen[bytes] | Forked":
        """Start what forks the process: a fork of this one, as long as that works, or else what imports the task anew.

        With the fork it shares the memory of all that the task has imported; its environment is this process's.
        """
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)
        worker = os.getpid()
        given = {"control": theirs.fileno(), "worker": worker, "task": self._name, "folders": self._folders.beginning}
        with theirs:
            if not self._share and can_fork():
                gc.freeze()  # a collection over there would copy what is shared
                if not (pid := os.fork()):
                    serve(theirs, worker, self._task, self._folders)
                return Forked(pid)
            return subprocess.Popen(
                [sys.executable, "-c", START, json.dumps({**given, "argv": sys.argv, "path": sys.path})],
                env={**os.environ, **self._share},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is the worker's
            )

    def serve(self, owner: Owner, slots: int, patience: float) -> None:
        """See ``Process``."""
        super().serve(owner, slots, patience)
        self._listen()

    def _listen(self) -> None:
        if self._loop:
            self._loop.add_reader(self._channel, self.read)
            self._loop.add_reader(self._control, self.read_report)
            self._ask(Ask.BEGIN, self.slots)
            self._later(STILL_LOADING, self._tell)

    def _tell(self) -> None:
        if not (self.ready or self.over):
            log.info("load() goes on.")
            self._later(STILL_LOADING, self._tell)

    def _ask(self, kind: int, number: int, payload: bytes = b"", context: contextvars.Context | None = None) -> None:
        del context  # of this process
        self._unsent += frame(kind, number, payload)
        self._waiting += 1
        if not self._loop or self._waiting == AT_ONCE:
            self._send()
        elif not self._sending:  # what is asked for in the same turn of the event loop goes together
            self._sending = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        """Send what the socket has room for, and the rest when it has room again."""
        self._sending, self._waiting = False, 0
        try:
            while self._unsent:
                del self._unsent[: self._channel.send(self._unsent)]
        except BlockingIOError:
            if self._loop:
                self._sending = True
                self._loop.add_writer(self._channel, self._send_rest)
        except OSError:  # it has ended, which is reported
            self._unsent.clear()

    def _send_rest(self) -> None:
        if self._loop:
            self._loop.remove_writer(self._channel)
        self._send()

    def read(self) -> bool:
        """Take what the process says; return whether there may be more. If it has closed its end, kill it."""
        try:
            data = self._channel.recv(READ)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not (data and self._hear(data)):
            data = b""
            self._leave(self._channel)
            self.kill()
            self._later(UNLOAD_WITHIN, self._kill_server)  # it has not reported the end by then
        return bool(data)

    def read_report(self) -> None:
        """Take what is said of the process: that it has begun, or with which status it has ended."""
        data = b""
        with suppress(OSError):
            data = self._control.recv(REPORT.size)
        if data:
            kind, value = REPORT.unpack(data)
            if kind == b"P":
                self._pid = value
            else:
                self._gone(value)
        else:
            self._leave(self._control)
            self._control.close()
            self._kill_server()
            self._reap()

    def _reap(self) -> None:
        """Take note that what forks the process has ended, as soon as it has."""
        if self._server and (status := self._server.poll()) is not None:
            self._server = None
            self._gone(status)
        elif self._loop:
            self._later(REAP_EVERY, self._reap)
        elif self._server:
            self._server.wait()
            self._reap()

    def _kill_server(self) -> None:
        if self._server:
            with suppress(ProcessLookupError):
                self._server.kill()  # and what it has forked ends with it

    def kill(self) -> None:
        """See ``Process``."""
        with suppress(ProcessLookupError):
            if self._pid:
                os.killpg(self._pid, signal.SIGKILL)
            else:
                self._kill_server()

    def end(self) -> None:
        """See ``Process``."""
        self._ask(Ask.END, 0)
        self._later(UNLOAD_WITHIN, self.kill)

    def _gone(self, status: int) -> None:
        """Give back what the process had in hand, and start another."""
        if self._pid:
            self.kill()  # what it has started itself, in its group
        self._remove(self._folders.of(self._pid).found())
        while self.read():
            pass
        self._leave(self._channel)
        self._channel.close()
        in_hand, on_purpose = [*self.attempts.values()], self._on_purpose
        self.attempts.clear()
        self.ready = self._ending = self._on_purpose = False
        why = f"ended with status {status}" if status >= 0 else f"was killed by {_signal(-status)}"
        self._fault = self._fault or f"load() in task.py failed: its process {why}"
        self.over = self._stopped or self._loads >= LOADS
        if not self.over:
            self._start_again()
        if self._owner:
            self._owner.gone(self, in_hand, why, on_purpose=on_purpose)
            if self.over:
                self._owner.lost(self._fault)

    def _remove(self, folders: list[Path]) -> None:
        """Remove what the process has left: in a thread, where there is an event loop to keep free."""
        if folders and self._loop:
            with suppress(RuntimeError):  # no thread could be started; ``close`` removes them
                threading.Thread(target=remove, args=(folders,), daemon=True).start()

    def _start_again(self) -> None:
        """Start another process; if the system has no room for one, or the server has just ended, a second later.

        Raises ``Refused`` instead where there is no event loop yet.
        """
        try:
            self._start()
        except OSError as error:
            for descriptor in self.sockets:
                self._leave(descriptor)  # the next may get its number, and the event loop would not listen to that
            self.let_go()
            self._kill_server()
            if self._server:
                self._server.wait()
                self._server = None
            why = f"No process can be started for the task: {error}"
            if not self._loop:
                raise Refused(why) from None
            log.error(why)
            self._later(1.0, self._start_again)

    def _leave(self, descriptor: socket.socket) -> None:
        if self._loop and descriptor.fileno() >= 0:
            self._loop.remove_reader(descriptor)
            self._loop.remove_writer(descriptor)

    @property
    def sockets(self) -> tuple[socket.socket, socket.socket]:
        """What ``read`` and ``read_report`` read."""
        return self._channel, self._control

    def let_go(self) -> None:
        """Close its sockets in this process."""
        self._channel.close()
        self._control.close()

    def close(self) -> None:
        """Close its sockets once it is over; what has forked it ends then. Remove the folders that are left."""
        self.let_go()
        if self._server:
            self._server.wait()
        remove(self._folders.found())

    def check(self) -> None:
        """Raise ``Refused`` if it cannot load."""
        if self.over:
            raise Refused(self._fault)

    def stop(self) -> None:
        """End it for good; there is no event loop any more."""
        self._loop = self._owner = None
        self._stopped = True
        if not self._server:  # there was no room for another
            self.over = True
        elif self._control.fileno() < 0:  # what forked it has died
            self._reap()
        elif self.ready and not self.attempts:
            self.end()
        elif not self.over:
            self.kill()


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


_made: "WeakSet[Beside]" = WeakSet()


def _let_go_of_all() -> None:
    """Not to keep a process alive from one that the worker has forked, such as the SDK's heartbeat."""
    for process in _made:
        process.let_go()


os.register_at_fork(after_in_child=_let_go_of_all)


def read(processes: Sequence[Beside], seconds: float) -> bool:
    """Take what ``processes`` say within ``seconds``, without an event loop; return whether it was anything."""
    channels = {process.sockets[0]: process for process in processes}
    controls = {process.sockets[1]: process for process in processes}
    readable, _, _ = select.select([*channels, *controls], [], [], None if seconds == math.inf else seconds)
    for file in readable:
        if file in channels:
            channels[file].read()
        else:
            controls[file].read_report()
    return bool(readable)
