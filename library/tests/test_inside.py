"""The side of a process in which the task is, by itself: what it is told, what it says, and how it ends."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from aggregating_worker.process.beside import START
from aggregating_worker.process.inside import FIRST_TO_DIE, NO_DEBUGGER, REPORT
from aggregating_worker.process.wire import Ask, Flag, Frames, Say, frame, read_outcome

WAIT = 20.0
"""Seconds in which it says what it has to say."""


class Server:
    """What imports a task and forks the processes that run it; the test is its worker."""

    def __init__(self, task: str, folders: Path, **env: str) -> None:
        self._side: Side | None = None
        self.control, theirs = socket.socketpair()
        self.control.settimeout(WAIT)
        given = {"control": theirs.fileno(), "worker": os.getpid(), "task": task, "folders": str(folders / "of")}
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, json.dumps({**given, "argv": ["handler.py", "x"], "path": sys.path})],
                stdin=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **env},
            )

    def begin(self, most: int = 1) -> "Side":
        """Have it fork a process, once the last has ended, and return the worker's end of the socket to that."""
        if self._side:
            self._side.channel.close()
            self.report(b"E")
        ours, theirs = socket.socketpair()
        ours.settimeout(WAIT)
        with theirs:
            socket.send_fds(self.control, [b"+"], [theirs.fileno()])
        self._side = Side(ours, self.report(b"P"), most)
        return self._side

    def report(self, kind: bytes) -> int:
        """Return what it reports, which is of this kind."""
        found, value = REPORT.unpack(self.control.recv(REPORT.size))
        assert found == kind
        if kind == b"E" and self._side:
            self._side.channel.close()
            self._side = None
        return int(value)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.control.close()
        if self._side:
            self._side.channel.close()
        self.process.kill()
        self.process.communicate()


class Side:
    """The worker's end of the socket to a process."""

    def __init__(self, channel: socket.socket, pid: int, most: int) -> None:
        self.channel, self.pid = channel, pid
        self._frames = Frames(Say)
        self._heard: list[Any] = []
        self.flags = 0
        """Of the last outcome."""
        self.ask(Ask.BEGIN, most)
        self.ask(Ask.JOB, 1, pickle.dumps(("job", pickle.dumps(None), {})))

    def ask(self, kind: Ask, number: int, payload: bytes = b"") -> None:
        self.channel.sendall(frame(kind, number, payload))

    def call(self, number: int, do: str) -> None:
        self.ask(Ask.CALL, number, pickle.dumps(([pickle.dumps(do)], [(1, 0)])))

    def hear(self) -> tuple[Say, int, Any]:
        """Return the next frame: of an outcome the envelope, else what JSON there is, or the bytes."""
        while not self._heard:
            data = self.channel.recv(65_536)
            assert data, "It has ended."
            self._heard += self._frames.feed(data)
        kind, number, payload = self._heard.pop(0)
        if kind == Say.MADE:
            _, self.flags, [envelope] = read_outcome(payload)
            return Say(kind), number, json.loads(envelope)
        return Say(kind), number, json.loads(payload) if payload[:1] in (b"[", b"{") else payload

    def made(self, do: str) -> Any:
        """Do a call; return its result or its exception, after which the process says that it has ended."""
        self.call(7, do)
        kind, number, found = self.hear()
        assert number == 7
        assert self.hear()[:2] == (Say.ENDED, 7)
        return found["result"] if kind == Say.MADE else found

    def ends(self) -> bytes:
        """Return what it says before it closes its end."""
        said = b"".join(each for _, _, each in self._heard)
        try:
            while more := self.channel.recv(65_536):
                said += more
        except ConnectionResetError:
            pass
        return said


Start = Callable[..., Server]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start a server of one of ``tests/tasks``, or return the one that there is."""
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        (folders := tmp_path_factory.mktemp("folders")).joinpath("of").mkdir()

        def find(task: str = "told", **env: str) -> Server:
            key = repr((task, env))
            if key not in servers or servers[key].process.poll() is not None:
                servers[key] = stack.enter_context(Server(f"tests.tasks.{task}", folders, **env))
            return servers[key]

        yield find


def ready(server: Server, most: int = 1) -> Side:
    side = server.begin(most)
    kind, number, [seconds] = side.hear()
    assert (kind, number) == (Say.READY, 0)
    assert 0 <= seconds < WAIT
    return side


@pytest.fixture(params=["told", "told_async"])
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_process_leads_a_group_has_what_the_import_left_and_ends_when_it_is_told(start: Start, task: str) -> None:
    server = start(task)
    for _ in range(2):
        side = ready(server)
        assert side.pid != server.process.pid
        do = "import os, sys; result = [os.getpid(), os.getpgid(0), os.getsid(0), sys.argv]"
        found = [side.pid, side.pid, server.process.pid, ["handler.py", "x"]]
        assert side.made(do if task == "told" else f"{do}\nmain = lambda: result") == found
        if task == "told":
            loaded = side.made("from tests.tasks import told; result = [told.IMPORTED_BY, told.LOADED_BY]")
            assert loaded == [server.process.pid, side.pid]
        side.ask(Ask.END, 0)
        assert side.ends() == b""
        assert server.report(b"E") == 0


def test_it_has_no_input_the_usual_signals_no_debugger_and_is_the_first_to_die(start: Start) -> None:
    side = ready(start())
    assert side.made("import sys; result = sys.stdin.read()") == ""
    names = "SIGINT SIGTERM SIGHUP SIGCHLD"
    do = f"import signal; result = [signal.getsignal(getattr(signal, each)) for each in {names.split()}]"
    assert side.made(do) == [signal.SIG_DFL.value] * 4
    assert side.made("breakpoint()")[:2] == ["RuntimeError", NO_DEBUGGER]
    assert side.made("result = open('/proc/self/oom_score_adj').read()") == f"{FIRST_TO_DIE}\n"


@pytest.mark.parametrize(("do", "status"), [("os.kill(os.getpid(), 9)", -9), ("os._exit(3)", 3)])
def test_how_it_has_ended_is_reported_and_the_next_begins(start: Start, do: str, status: int) -> None:
    server = start()
    side = ready(server)
    side.call(7, f"import os; {do}")
    assert side.ends() == b""
    assert server.report(b"E") == status
    assert ready(server).made("result = 1") == 1


def test_one_call_at_a_time_runs_in_the_main_thread_and_several_beside_one_another(start: Start, fifo: Path) -> None:
    do = "import threading; result = threading.current_thread() is threading.main_thread()"
    assert ready(start()).made(do) is True
    side = ready(start(), most=2)
    side.call(8, f"result = open({str(fifo)!r}).read()")
    assert side.made(do) is False
    fifo.write_text("released")
    assert side.hear()[2]["result"] == "released"
    assert side.hear() == (Say.ENDED, 8, b"")


def test_it_answers_while_a_call_runs_and_what_is_cut_is_read_whole(start: Start, task: str, fifo: Path) -> None:
    side = ready(start(task))
    read = f"open({str(fifo)!r}).read()"
    side.call(8, f"result = {read}" if task == "told" else f"main = lambda: asyncio.to_thread(lambda: {read})")
    for byte in frame(Ask.PING, 8):
        side.channel.sendall(bytes([byte]))
    assert side.hear() == (Say.PONG, 8, b"")
    fifo.write_text("released")
    assert side.hear()[2]["result"] == "released"


def test_what_is_said_in_one_turn_comes_in_order_and_what_a_thread_says_too(start: Start) -> None:
    side = ready(start("told_async"))
    for many in (1, 4, 6):
        side.call(7, f"main = lambda: [context.progress(each) for each in range({many})]")
        said = [side.hear() for _ in range(many + 2)]
        assert [each[2][4:] for each in said[:many]] == [b"%d" % each for each in range(many)]
        assert [each[0] for each in said[many:]] == [Say.MADE, Say.ENDED]
    side.call(7, "main = lambda: asyncio.to_thread(context.progress, 0.5)")
    assert side.hear() == (Say.PROGRESS, 7, b"\0\0\0\0000.5")


def test_that_a_progress_cannot_be_sent_is_said_once(start: Start) -> None:
    side = ready(start())
    side.call(7, "for _ in range(2): context.progress(object())")
    kind, number, [level, text, job] = side.hear()
    assert (kind, number, level, job) == (Say.LOGGED, 7, "WARN", "job")
    assert text.startswith("Not sent: progress: object cannot be returned")
    assert side.hear()[0] == Say.MADE


def test_what_is_said_by_the_sdk_comes_as_what_the_item_says_of_its_progress(start: Start) -> None:
    side = ready(start())
    side.call(7, "import runpod; runpod.serverless.progress_update({'id': 'job'}, 'half')")
    assert side.hear() == (Say.PROGRESS, 7, b'\0\0\0\0"half"')


@pytest.mark.parametrize(
    ("do", "flags"),
    [
        ("result = 1", Flag.SUCCESS),
        ("result = {'refresh_worker': True}", Flag.SUCCESS | Flag.REFRESH),
        ("result = {'error': 'no'}", 0),
        ("result = {'error': 'no', 'refresh_worker': True}", Flag.REFRESH),
    ],
)
def test_what_a_result_asks_for_goes_with_its_outcome(start: Start, do: str, flags: int) -> None:
    side = ready(start())
    side.call(7, do)
    assert side.hear()[0] == Say.MADE
    assert side.flags == flags


def test_a_call_that_is_cancelled_ends_without_an_outcome(start: Start) -> None:
    side = ready(start("told_async"))
    side.call(7, "main = lambda: (context.progress(1), asyncio.sleep(1_000))[1]")
    assert side.hear()[0] == Say.PROGRESS
    side.ask(Ask.CANCEL, 7)
    assert side.hear() == (Say.ENDED, 7, b"")


def test_what_it_logs_goes_with_its_call_and_a_process_that_it_forks_says_nothing_and_keeps_nothing_open(
    start: Start,
) -> None:
    side = ready(start())
    side.call(7, "import logging; logging.warning('careful')")
    assert side.hear() == (Say.LOGGED, 7, ["WARN", "Item 0: careful", "job"])
    side.hear(), side.hear()
    fork = """
import logging, os, signal
if not os.fork():
    logging.warning('not over the socket')
    context.progress(1)
    signal.pause()
os.kill(os.getpid(), 9)
"""
    side.call(7, fork)
    assert side.ends() == b""
    os.killpg(side.pid, signal.SIGKILL)
    start().report(b"E")


@pytest.mark.parametrize(
    ("env", "task", "number", "said"),
    [
        ({"LOAD": "raise OSError('no weights')"}, "told", 1, ["OSError", "no weights"]),
        ({}, "not_there", 0, ["ModuleNotFoundError", "No module named 'tests.tasks.not_there'"]),
    ],
)
def test_why_a_task_cannot_be_used_is_said(
    start: Start, env: dict[str, str], task: str, number: int, said: list[str]
) -> None:
    server = start(task, **env)
    side = server.begin()
    kind, found, [*why] = side.hear()
    assert (kind, found, why[:2]) == (Say.UNUSABLE, number, said)
    assert f"{said[0]}: {said[1]}" in why[2]
    assert side.ends() == b""
    assert server.report(b"E") == 1


def test_an_unload_that_fails_is_in_the_log_and_an_async_one_runs_on_the_loop_of_the_calls(start: Start) -> None:
    for task, do in (("told", "raise OSError('busy')"), ("told_async", "raise OSError('busy' if same_loop else '')")):
        server = start(task, UNLOAD=do)
        side = ready(server)
        side.ask(Ask.END, 0)
        kind, number, [level, text, job] = side.hear()
        assert (kind, number, level, job) == (Say.LOGGED, 0, "ERROR", None)
        assert text.startswith("unload() failed\nTraceback")
        assert text.endswith("OSError: busy")
        assert side.ends() == b""
        assert server.report(b"E") == 0


@pytest.mark.parametrize("do", ["close", "garbage"])
def test_a_process_that_nobody_listens_to_ends_and_leaves_no_folder(start: Start, task: str, do: str) -> None:
    server = start(task)
    side = ready(server)
    wait = "(context.progress(str(context.folder)), {})[1]"
    sleep = "__import__('time').sleep(1_000)" if task == "told" else "asyncio.sleep(1_000)"
    side.call(7, f"main = lambda: {wait.format(sleep)}" + "\nmain()" * (task == "told"))
    folder = Path(json.loads(side.hear()[2][4:]))
    assert folder.name.startswith(f"of-{side.pid}-")
    assert folder.is_dir()
    if do == "close":
        side.channel.close()
    else:
        side.channel.sendall(b"none of its frames")
    assert server.report(b"E") == 1
    assert folder.exists() == (do == "garbage")


def test_an_exit_in_a_task_of_the_event_loop_ends_the_process(start: Start) -> None:
    server = start("told_async")
    side = ready(server)
    side.call(7, "async def leave(): raise SystemExit(0)\nmain = lambda: asyncio.create_task(leave()) and None")
    side.ends()
    assert server.report(b"E") == 1


def test_a_server_whose_worker_has_ended_takes_all_with_it(start: Start) -> None:
    server = start()
    side = ready(server)
    side.call(7, "import time; context.progress(str(context.folder)); time.sleep(1_000)")
    folder = Path(json.loads(side.hear()[2][4:]))
    assert folder.is_dir()
    server.process.terminate()  # as the kernel does
    assert server.process.wait(WAIT) == 1
    assert side.ends() == b""
    assert not folder.exists()
    server = start()
    side = ready(server)
    server.process.kill()
    assert side.ends() == b""
    server = start()
    ready(server).ask(Ask.END, 0)
    server.report(b"E")
    server.control.close()
    assert server.process.wait(WAIT) == 0


@pytest.mark.parametrize("ends", [True, False])
def test_a_server_whose_worker_has_not_heard_all_ends_without_a_traceback(start: Start, ends: bool) -> None:
    server = start()
    side = ready(server)
    if ends:
        side.ask(Ask.END, 0)
        assert side.ends() == b""
        assert server.control.recv(1, socket.MSG_PEEK)
        server.control.close()
    else:
        server.control.close()
        side.ask(Ask.END, 0)
    assert server.process.wait(WAIT) == 0


def test_where_no_fork_would_work_the_server_runs_the_calls_itself(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import threading, time\nthreading.Thread(target=time.sleep, args=(1_000,), daemon=True).start()\n"
    (tmp_path / "threaded.py").write_text(f"{code}from tests.tasks.told import *\n")
    monkeypatch.syspath_prepend(tmp_path)
    with Server("threaded", tmp_path) as server:
        side = ready(server)
        assert side.pid == server.process.pid
        assert side.made("import os; result = os.getpid()") == side.pid
        side.ask(Ask.END, 0)
        assert server.process.wait(WAIT) == 0
        assert server.control.recv(1) == b""
