"""The worker's side of a process beside it, with a real one: how it is started, heard, ended and started again."""

import asyncio
import contextvars
import json
import os
import pickle
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from aggregating_worker import log
from aggregating_worker.process import beside as beside_worker
from aggregating_worker.process import processes as of_processes
from aggregating_worker.process.attempt import Attempt, Shared
from aggregating_worker.process.beside import Beside, Forked, read
from aggregating_worker.process.inside import AT_ONCE
from aggregating_worker.process.process import LOADS, Process
from aggregating_worker.process.processes import Processes
from aggregating_worker.process.wire import Ask, Frames
from aggregating_worker.refusal import Refused
from tests.tasks import told

WAIT = 20.0
"""Seconds for whatever is waited for."""


@dataclass(eq=False)
class Item:
    """Keeps its envelope."""

    index: int = 0
    shared: Shared = field(default_factory=lambda: Shared(1, pickle.dumps(("job", pickle.dumps(None), {}))))
    made: Any = None

    def take(self, flags: int, pieces: list[bytes]) -> None:
        self.made = json.loads(pieces[0])

    def take_part(self, part: bytes) -> None:
        """There are none."""

    def take_progress(self, value: bytes) -> None:
        self.made = json.loads(value)


class Owner:
    """Has calls run, and notes what it is told of the process."""

    def __init__(self, beside: Beside) -> None:
        self.beside = beside
        self.ended: list[tuple[list[Attempt[Any]], str, bool]] = []
        self.reasons: list[str] = []

    def look(self) -> None:
        """See ``until``."""

    def gone(self, process: Process, in_hand: Sequence[Attempt[Any]], why: str, *, on_purpose: bool) -> None:
        assert process is self.beside
        for attempt in in_hand:
            attempt.over = True
            attempt.wake()
        self.ended.append(([*in_hand], why, on_purpose))

    def lost(self, reason: str) -> None:
        self.reasons.append(reason)

    def begin(self, number: int, do: str) -> Attempt[Item]:
        attempt = Attempt(number, [Item()], contextvars.Context())
        self.beside.begin(attempt, [pickle.dumps(do)])
        return attempt

    async def result(self, do: str) -> Any:
        attempt = self.begin(7, do)
        assert await attempt.wait(WAIT)
        return attempt.items[0].made["result"]


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(WAIT):
        while not condition():  # in another process
            await asyncio.sleep(0.005)


Begin = Callable[..., Beside]


@pytest.fixture
def start() -> Iterator[Begin]:
    """Start a process of the task ``told``; in the end, stop it as a worker does."""
    started: list[Beside] = []

    def start(**share: str) -> Beside:
        started.append(Beside("tests.tasks.told", told, share))
        return started[-1]

    yield start
    for beside in started:
        beside.stop()
        while not beside.over:
            assert read([beside], WAIT)
        beside.close()


def loaded(beside: Beside) -> Beside:
    while not beside.ready:
        assert read([beside], WAIT)
        beside.check()
    return beside


def run(beside: Beside, scenario: Callable[[Owner], Awaitable[None]], slots: int = 1, patience: float = WAIT) -> None:
    async def serve() -> None:
        owner = Owner(beside)
        beside.serve(owner, slots, patience)
        await scenario(owner)

    asyncio.run(serve())


CLOSE = """
import contextlib, gc, socket, time
for each in gc.get_objects():
    with contextlib.suppress(OSError):
        type(each) is socket.socket and each.shutdown(socket.SHUT_RDWR)
time.sleep(1_000)
"""
WHERE = "import os; result = [os.getpid(), os.getppid(), os.environ.get('SHARE')]"


@pytest.mark.parametrize("share", [{}, {"SHARE": "one"}], ids=["no share", "a share"])
def test_it_runs_calls_in_the_next_one_too_when_the_first_has_ended(start: Begin, share: dict[str, str]) -> None:
    beside = loaded(start(**share))
    assert beside.load_seconds < WAIT

    async def scenario(owner: Owner) -> None:
        pids = set()
        for lives, (do, why) in enumerate((("os._exit(3)", "ended with status 3"), ("os.kill(os.getpid(), 9)", ""))):
            assert (beside.slots, beside._lives) == (1, lives + 1)
            pid, server, shared = await owner.result(WHERE)
            assert (shared, server != os.getpid()) == (share.get("SHARE"), True)
            pids |= {pid, server}
            attempt = owner.begin(8, f"import os; {do}")
            assert await attempt.wait(WAIT)
            assert owner.ended.pop() == ([attempt], why or "was killed by SIGKILL", False)
            assert not beside.attempts
            await until(lambda: beside.ready)
        beside.retire()
        await until(lambda: owner.ended and beside.ready)
        assert owner.ended == [([], "ended with status 0", True)]
        pids |= {*(await owner.result(WHERE))[:2]}
        assert len(pids) == 4  # one server, which has forked three
        assert owner.reasons == []

    run(beside, scenario)


def test_a_call_of_many_bytes_goes_as_the_process_reads_it(start: Begin) -> None:
    beside = loaded(start())

    async def scenario(owner: Owner) -> None:
        text = "é" * 2_000_000
        assert await owner.result(f"result = len({text!r})") == len(text)
        assert await owner.result("result = 1") == 1
        pid, *_ = await owner.result(WHERE)
        os.kill(pid, signal.SIGSTOP)
        calls = [owner.begin(number, f"result = len({text!r})") for number in (8, 9)]
        await until(lambda: beside._sending and len(beside._unsent) < 2 * len(text.encode()))
        os.kill(pid, signal.SIGCONT)
        for attempt in calls:
            assert await attempt.wait(WAIT)
            assert attempt.items[0].made["result"] == len(text)

    run(beside, scenario)


def test_a_few_frames_go_together_and_many_do_not_wait_for_one_another(start: Begin) -> None:
    async def scenario(owner: Owner) -> None:
        await asyncio.sleep(0)
        begun = [owner.begin(number, f"result = {number}") for number in range(AT_ONCE - 2)]
        assert len([*Frames(Ask).feed(bytes(beside._unsent))]) == AT_ONCE - 1  # a job's frame, and theirs
        begun.append(owner.begin(AT_ONCE, f"result = {AT_ONCE}"))
        assert not beside._unsent
        for attempt in begun:
            assert await attempt.wait(WAIT)
            assert attempt.items[0].made["result"] == attempt.number

    beside = loaded(start())
    run(beside, scenario)


def test_as_many_calls_as_there_are_slots_run_side_by_side_and_a_progress_comes(start: Begin, fifo: Path) -> None:
    async def scenario(owner: Owner) -> None:
        first = owner.begin(8, f"context.progress('begun'); result = open({str(fifo)!r}).read()")
        await until(lambda: first.items[0].made == "begun")
        assert await owner.result("result = 1") == 1
        assert not first.over
        await asyncio.to_thread(fifo.write_text, "released")
        assert await first.wait(WAIT)
        assert first.items[0].made["result"] == "released"

    run(loaded(start()), scenario, slots=2)


def test_a_process_that_has_closed_its_end_is_killed_and_another_starts(start: Begin) -> None:
    beside = loaded(start())

    async def scenario(owner: Owner) -> None:
        attempt = owner.begin(8, CLOSE)
        assert await attempt.wait(WAIT)
        [(in_hand, why, on_purpose)] = owner.ended  # it may notice as soon as the worker does
        assert (in_hand, on_purpose) == ([attempt], False)
        assert why in ("was killed by SIGKILL", "ended with status 1")
        await until(lambda: beside.ready)
        assert await owner.result("result = 1") == 1

    run(beside, scenario)


def test_what_a_process_has_started_and_left_goes_with_it(start: Begin) -> None:
    beside = loaded(start())

    async def scenario(owner: Owner) -> None:
        child = "import subprocess; child = subprocess.Popen(['sleep', '1000']).pid"
        attempt = owner.begin(8, f"{child}; context.progress([child, str(context.folder)]); __import__('os')._exit(1)")
        assert await attempt.wait(WAIT)
        pid, folder = attempt.items[0].made
        await until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
        await until(lambda: not Path(folder).exists())

    run(beside, scenario)


@pytest.mark.parametrize("share", [{}, {"SHARE": "one"}], ids=["no share", "a share"])
def test_what_forks_the_processes_is_started_again_when_it_has_died(start: Begin, share: dict[str, str]) -> None:
    beside = loaded(start(**share))

    async def scenario(owner: Owner) -> None:
        _, server, _ = await owner.result(WHERE)
        attempt = owner.begin(8, "import time; time.sleep(1_000)")
        os.kill(server, signal.SIGKILL)
        assert await attempt.wait(WAIT)
        [(in_hand, why, on_purpose)] = owner.ended
        assert (in_hand, why, on_purpose) == ([attempt], "was killed by SIGKILL", False)
        await until(lambda: beside.ready)
        pid, another, shared = await owner.result(WHERE)
        assert (another not in (server, pid), shared) == (True, share.get("SHARE"))

    run(beside, scenario)


def test_a_worker_that_is_told_to_stop_when_that_has_just_died_ends(
    start: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = loaded(start())

    async def scenario(owner: Owner) -> None:
        _, server, _ = await owner.result(WHERE)
        monkeypatch.setattr(beside._server, "poll", lambda: None)  # its files are closed before it can be waited for
        os.kill(server, signal.SIGKILL)
        await until(lambda: beside.sockets[1].fileno() < 0)

    run(beside, scenario)
    monkeypatch.undo()


def test_a_process_that_does_not_answer_is_killed_when_its_patience_is_over(start: Begin) -> None:
    beside = loaded(start())

    async def scenario(owner: Owner) -> None:
        attempt = owner.begin(8, "import time; time.sleep(1_000)")
        beside.retire()
        assert await attempt.wait(WAIT)
        assert owner.ended == [([attempt], "was killed by SIGKILL", True)]

    run(beside, scenario, patience=0.05)


def test_an_unload_that_does_not_return_is_ended(start: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside_worker, "UNLOAD_WITHIN", 0.05)
    beside = loaded(start(UNLOAD="import time; time.sleep(1_000)"))

    async def scenario(owner: Owner) -> None:
        beside.retire()
        await until(lambda: owner.ended)
        assert owner.ended == [([], "was killed by SIGKILL", True)]
        await until(lambda: beside.ready)

    run(beside, scenario)
    beside.kill()


def test_a_load_that_fails_is_tried_three_times_and_its_reason_is_kept(start: Begin) -> None:
    beside = start(LOAD="raise OSError('no weights')")
    with pytest.raises(Refused, match=r"^load\(\) in task\.py failed: OSError: no weights$"):
        loaded(beside)
    assert (beside.over, beside.ready, beside._lives) == (True, False, LOADS)


def test_who_owns_it_is_told_that_it_cannot_load_any_more(start: Begin, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    beside = loaded(start(LOAD=f"import os; os.path.exists({str(broken)!r}) and os._exit(5)"))

    async def scenario(owner: Owner) -> None:
        broken.touch()
        await owner.begin(8, "import os; os._exit(3)").wait(WAIT)
        await until(lambda: beside.over)
        assert owner.reasons == ["load() in task.py failed: its process ended with status 5"]
        assert [why for _, why, _ in owner.ended] == ["ended with status 3"] + ["ended with status 5"] * LOADS
        assert not beside.ready

    run(beside, scenario)


@pytest.mark.parametrize("times", [LOADS, 1_000_000])
def test_where_the_system_has_no_room_for_a_process_it_is_tried_again_until_the_worker_ends(
    start: Begin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], times: int
) -> None:
    beside = loaded(start())
    failures, make, later = iter(range(times)), socket.socketpair, beside._later

    def socketpair(*given: Any) -> Any:
        if next(failures, None) is not None:
            raise OSError("no room")
        return make(*given)

    async def scenario(owner: Owner) -> None:
        _, server, _ = await owner.result(WHERE)
        monkeypatch.setattr(beside, "_later", lambda seconds, do: later(seconds / (50 if seconds == 1 else 1), do))
        monkeypatch.setattr(socket, "socketpair", socketpair)
        await owner.begin(8, "import os; os._exit(3)").wait(WAIT)
        if times == LOADS:
            await until(lambda: beside.ready)
            assert beside._loads == 1  # what was not started does not count
            assert (await owner.result(WHERE))[1] != server

    run(beside, scenario)
    said = capsys.readouterr().out.count("No process can be started for the task: no room")
    assert said == LOADS if times == LOADS else said


@pytest.mark.parametrize("before", [0, 1], ids=["the first", "the second"])
def test_where_there_is_no_room_before_the_worker_serves_it_says_so_and_ends(
    start: Begin, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    make, times = socket.socketpair, iter(range(2 * before))

    def socketpair(*given: Any) -> Any:
        if next(times, None) is None:
            raise OSError("no room")
        return make(*given)

    monkeypatch.setattr(socket, "socketpair", socketpair)
    with pytest.raises(Refused, match=r"^No process can be started for the task: no room$"):
        loaded(start(LOAD="import os; os._exit(5)"))


def test_that_a_load_goes_on_is_said(start: Begin, fifo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 2:
            fifo.write_text("released")

    for module in (beside_worker, of_processes):
        monkeypatch.setattr(module, "STILL_LOADING", 0.02)
    monkeypatch.setattr(log, "info", say)
    monkeypatch.setenv("LOAD", f"open({str(fifo)!r}).read()")
    with Processes("tests.tasks.told") as processes:
        processes.start(told, 1)
        processes.load()
    assert {*said} == {"load() goes on after 0 s."}
    assert len(said) >= 2
    said.clear()
    beside = start()

    async def scenario(owner: Owner) -> None:
        await until(lambda: beside.ready)
        assert {*said} == {"load() goes on."}

    run(beside, scenario)


@pytest.mark.parametrize("forked", [True, False])
def test_all_end_with_their_worker_in_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, forked: bool) -> None:
    if not forked:
        monkeypatch.setattr(beside_worker, "can_fork", lambda: False)
    unloaded = tmp_path / "unloaded"
    monkeypatch.setenv("UNLOAD", f"open({str(unloaded)!r}, 'a').write('x')")
    with Processes("tests.tasks.told") as processes:
        processes.start(told, 2)
        processes.load()
        assert [process.ready for process in processes.all] == [True, True]
    assert unloaded.read_text() == "xx"
    assert [process.over for process in processes.all] == [True, True]
    monkeypatch.setenv("UNLOAD", "import time; time.sleep(1_000)")
    monkeypatch.setattr(of_processes, "UNLOAD_WITHIN", 0.05)
    with Processes("tests.tasks.told") as processes:
        processes.start(told, 1)
        processes.load()
    assert [process.over for process in processes.all] == [True]


def test_a_call_in_hand_is_ended_with_the_worker(start: Begin) -> None:
    beside = loaded(start())
    pids: list[int] = []

    async def scenario(owner: Owner) -> None:
        attempt = owner.begin(8, "import os, time; context.progress(os.getpid()); time.sleep(1_000)")
        await until(lambda: attempt.items[0].made)
        pids.append(attempt.items[0].made)

    run(beside, scenario)
    beside.stop()
    while not beside.over:
        assert read([beside], WAIT)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_what_the_worker_forks_keeps_no_process_alive(start: Begin) -> None:
    beside = loaded(start())
    if not (child := os.fork()):
        os._exit(sum(each.fileno() >= 0 for each in beside.sockets))
    assert Forked(child).wait() == 0
    assert all(each.fileno() >= 0 for each in beside.sockets)
