"""The worker's side of a process, by itself: what it says to it, and what it makes of what it hears."""

import asyncio
import contextvars
import json
import pickle
import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from aggregating_worker.outcome.result import Raised
from aggregating_worker.process.attempt import Attempt, Shared
from aggregating_worker.process.beside import Forked, _signal
from aggregating_worker.process.function import TaskFunction
from aggregating_worker.process.process import LOADS, Process
from aggregating_worker.process.wire import PLACE, Ask, Flag, Say, frame, outcome, values
from aggregating_worker.process.within import Within
from aggregating_worker.refusal import Refused

FAILED = Raised("ValueError", "no", "the trace")
BROKEN = Raised("RuntimeError", "CUDA error", "", broken="CUDA")


@dataclass(eq=False)
class Item:
    """Notes what is made of it."""

    index: int
    shared: Shared
    taken: list[Any] = field(default_factory=list)

    def take(self, flags: int, pieces: list[bytes]) -> None:
        self.taken.append((flags, pieces))

    def take_part(self, part: bytes) -> None:
        self.taken.append(part)

    def take_progress(self, value: bytes) -> None:
        self.taken.append(("progress", value))


class Noted(Process):
    """A process and its owner, which note what they are told."""

    def __init__(self, patience: float = 60.0) -> None:
        super().__init__()
        self.notes: list[Any] = []
        self.serve(self, 2, patience)
        self.ready = True

    def _ask(self, kind: int, number: int, payload: bytes = b"", context: contextvars.Context | None = None) -> None:
        self.notes.append((Ask(kind), number, payload, context) if payload else (Ask(kind), number))

    def kill(self) -> None:
        self.notes.append("kill")

    def end(self) -> None:
        self.notes.append("end")

    def look(self) -> None:
        self.notes.append("look")

    def gone(self, process: Process, in_hand: Sequence[Attempt[Any]], why: str, *, on_purpose: bool) -> None:
        """It does not end here."""

    def lost(self, reason: str) -> None:
        """Nor does it give up."""

    def hear(self, *frames: bytes) -> list[Any]:
        """Hear frames; return what has been noted since."""
        self._hear(b"".join(frames))
        return self.noted()

    def noted(self) -> list[Any]:
        notes, self.notes = self.notes, []
        return notes


def call(process: Noted, number: int, items: int = 1, job: int = 1) -> Attempt[Item]:
    shared = Shared(job, b"job %d" % job)
    attempt = Attempt(number, [Item(10 + place, shared) for place in range(items)], contextvars.Context())
    process.begin(attempt, [b"item"] * items)
    return attempt


def in_loop(scenario: Callable[[], Any]) -> None:
    async def run() -> None:
        scenario()

    asyncio.run(run())


def test_a_job_is_told_once_before_its_first_call_until_it_is_over() -> None:
    def scenario() -> None:
        process = Noted()
        first = call(process, 7, items=2)
        (job, number, payload, _), (asked, seven, items, context) = process.noted()
        assert (job, number, payload) == (Ask.JOB, 1, b"job 1")
        assert (asked, seven, context) == (Ask.CALL, 7, first.context)
        assert pickle.loads(items) == ([b"item", b"item"], [(1, 10), (1, 11)])
        call(process, 8)
        assert [note[:2] for note in process.noted()] == [(Ask.CALL, 8)]
        process.forget(1)
        process.forget(1)
        process.forget(2)
        assert process.noted() == [(Ask.FORGET, 1)]
        call(process, 9)
        assert [note[0] for note in process.noted()] == [Ask.JOB, Ask.CALL]
        assert {*process.attempts} == {7, 8, 9}

    in_loop(scenario)


def test_an_outcome_goes_to_its_item_and_a_call_is_over_once_all_have_one() -> None:
    def scenario() -> None:
        process = Noted()
        attempt = call(process, 7, items=3)
        assert attempt.left == {0, 1, 2}
        process.noted()
        process.hear(outcome(7, 1, Flag.SUCCESS, [b"a", b"b"]), outcome(7, 0, 0, [b"c"]))
        assert [item.taken for item in attempt.items] == [[(0, [b"c"])], [(Flag.SUCCESS, [b"a", b"b"])], []]
        assert (attempt.left, attempt.over) == ({2}, False)
        assert process.hear(frame(Say.ENDED, 7, b"more")) == []
        assert (attempt.over, attempt.cancelled, 7 in process.attempts) == (True, False, True)
        assert process.hear(outcome(7, 2, 0, [b"d"])) == ["look"]
        assert (attempt.left, process.attempts) == (set(), {})
        assert process.hear(outcome(7, 0, 0, [b"e"]), frame(Say.ENDED, 8), frame(Say.PONG, 8)) == []

    in_loop(scenario)


@pytest.mark.parametrize(("raised", "cancelled"), [(FAILED, False), (None, True)])
def test_a_call_that_ends_without_outcomes_has_raised_or_was_cancelled(raised: Raised | None, cancelled: bool) -> None:
    def scenario() -> None:
        process = Noted()
        attempt = call(process, 7)
        process.hear(*([frame(Say.RAISED, 7, values(*astuple(raised)))] if raised else []), frame(Say.ENDED, 7))
        assert (attempt.raised, attempt.cancelled, attempt.over) == (raised, cancelled, True)
        assert (process.attempts, process.ready) == ({}, True)

    in_loop(scenario)


def test_a_call_with_outcomes_was_not_cancelled() -> None:
    def scenario() -> None:
        process = Noted()
        attempt = call(process, 7)
        process.hear(outcome(7, 0, 0, [b"x"]), frame(Say.ENDED, 7))
        assert (attempt.cancelled, attempt.over, process.attempts) == (False, True, {})

    in_loop(scenario)


def test_parts_and_progress_go_to_their_item() -> None:
    def scenario() -> None:
        process = Noted()
        attempt = call(process, 7, items=2)
        process.hear(frame(Say.PART, 7, b"part"), frame(Say.PROGRESS, 7, PLACE.pack(1), b"0.5"))
        assert [item.taken for item in attempt.items] == [[b"part"], [("progress", b"0.5")]]

    in_loop(scenario)


def test_a_process_that_is_asked_answers() -> None:
    def scenario() -> None:
        process = Noted()
        attempt = call(process, 7)
        process.noted()
        process.cancel(attempt)
        assert process.noted() == [(Ask.CANCEL, 7), (Ask.PING, 7)]
        assert (attempt.unwanted, attempt.answered) == (True, False)
        process.hear(frame(Say.PONG, 7))
        assert attempt.answered
        process.ping(attempt)
        assert not attempt.answered

    in_loop(scenario)


@pytest.mark.parametrize(
    "why",
    [
        [outcome(7, 0, Flag.SUCCESS | Flag.RESTART, [b"x"]), frame(Say.ENDED, 7)],
        [frame(Say.RAISED, 7, values(*astuple(BROKEN))), frame(Say.ENDED, 7)],
    ],
    ids=["asked for", "broken"],
)
def test_a_process_that_is_to_end_does_so_when_nobody_waits_for_a_call(why: list[bytes]) -> None:
    def scenario() -> None:
        process = Noted()
        call(process, 7)
        other = call(process, 8)
        process.noted()
        assert process.hear(*why) == []
        assert not process.ready
        process.retire()
        assert process.noted() == []
        process.hear(outcome(8, 0, 0, [b"x"]))
        assert process.hear(frame(Say.ENDED, 8)) == ["end"]
        assert other.over
        process.retire()
        assert process.noted() == []

    in_loop(scenario)


def test_it_is_killed_at_once_if_nobody_wants_what_is_left() -> None:
    def scenario() -> None:
        process = Noted()
        first, second = call(process, 7), call(process, 8)
        first.unwanted = True
        process.noted()
        process.retire()
        assert process.noted() == []
        second.unwanted = True
        process.retire()
        assert process.noted() == ["kill"]

    in_loop(scenario)


@pytest.mark.parametrize(("lives", "noted"), [(0, ["kill"]), (1, [])])
def test_the_other_calls_have_some_time_unless_it_has_ended_before(lives: int, noted: list[str]) -> None:
    async def scenario() -> None:
        process = Noted(patience=0.01)
        call(process, 7)
        process.noted()
        process.retire()
        process._lives += lives
        done = asyncio.Event()
        asyncio.get_running_loop().call_later(0.02, done.set)
        await done.wait()
        assert process.noted() == noted

    asyncio.run(scenario())


def test_it_is_ready_when_it_says_so() -> None:
    def scenario() -> None:
        process = Noted()
        process.ready = False
        assert process.hear(frame(Say.READY, 0, values(2.5))) == ["look"]
        assert (process.ready, process.load_seconds, process.slots) == (True, 2.5, 2)

    in_loop(scenario)


@pytest.mark.parametrize(
    ("number", "what", "loads"), [(1, "load() in task.py failed", 1), (0, "task.py cannot be imported", LOADS)]
)
def test_why_it_cannot_load_is_kept_and_said_with_the_trace_in_the_log_only(
    number: int, what: str, loads: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def scenario() -> None:
        process = Noted()
        process._loads = 1  # it is loading
        process.hear(frame(Say.UNUSABLE, number, values(*astuple(FAILED))))
        assert (process._fault, process._loads) == (f"{what}: ValueError: no", loads)

    in_loop(scenario)
    out = capsys.readouterr().out
    assert f"{what}\nthe trace" in out.replace("\\n", "\n")
    assert "ValueError: no" not in out


def test_the_trace_of_loads_that_fail_alike_is_in_the_log_once_until_one_goes_well(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def scenario() -> None:
        process = Noted()

        def fail(trace: str) -> None:
            process._loads = 1  # it is loading
            process.hear(frame(Say.UNUSABLE, 1, values(*astuple(Raised("ValueError", "no", trace)))))

        for trace in ("one trace", "one trace", "another"):
            fail(trace)
        process.hear(frame(Say.READY, 0, values(0.1)))
        fail("another")

    in_loop(scenario)
    out = capsys.readouterr().out
    assert [out.count(each) for each in ("one trace", "another", "load() in task.py failed: ValueError: no")] == [
        1,
        2,
        1,
    ]


def test_a_line_of_the_tasks_is_logged_in_the_context_of_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    of_job = contextvars.ContextVar("of_job", default="none")
    monkeypatch.setattr(
        "aggregating_worker.process.process.log.line", lambda *given: seen.append((*given, of_job.get()))
    )

    def scenario() -> None:
        process = Noted()
        call(process, 7).context.run(of_job.set, "mine")
        of_job.set("another's")
        for number in (7, 8):
            process.hear(frame(Say.LOGGED, number, json.dumps(["INFO", "text", "job"]).encode()))

    in_loop(scenario)
    assert seen == [("INFO", "text", "job", "mine"), ("INFO", "text", "job", "none")]


def test_a_fork_is_waited_for_and_killed_as_what_subprocess_has_started() -> None:
    child = subprocess.Popen(["sleep", "1000"])
    forked = Forked(child.pid)
    assert forked.poll() is None
    forked.kill()
    assert (forked.wait(), forked.poll(), forked.wait()) == (-signal.SIGKILL,) * 3
    forked.kill()  # nobody, who may have its number by now
    child.returncode = forked.returncode
    assert [_signal(number) for number in (9, 15, 40)] == ["SIGKILL", "SIGTERM", "signal 40"]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_within_the_worker_a_task_is_loaded_and_unloaded_and_one_that_cannot_be_says_why(
    is_async: bool, fails: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []
    why = "load() in task.py failed: OSError: no weights"

    def act(what: str) -> Any:
        async def later() -> None:
            act_now(what)

        return later() if is_async else act_now(what)

    def act_now(what: str) -> None:
        done.append(what)
        if fails:
            raise OSError("no weights")

    class Owner(Noted):
        def lost(self, reason: str) -> None:
            self.notes.append(reason)

    async def scenario() -> None:
        owner = Owner()
        within.serve(owner, 2, 1.0)
        while is_async and not owner.notes:
            await asyncio.sleep(0)
        assert owner.noted() == ([] if not is_async else [why] if fails else ["look"])
        assert (within.ready, within.slots) == (not fails, 2)

    task: Any = SimpleNamespace(process=lambda item, job: item, load=lambda: act("load"), unload=lambda: act("unload"))
    within = Within(task, TaskFunction.of(task))
    if fails and not is_async:
        with pytest.raises(Refused, match=f"^{re.escape(why)}$"):
            within.load()
    else:
        within.load()
        asyncio.run(scenario())
    within.end()
    assert done == ["load", "unload"]
    assert ("load() in task.py failed\\nTraceback" in capsys.readouterr().out.replace("\n", "\\n")) == fails
