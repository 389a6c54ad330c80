"""Blocking calls run side by side, in as few threads as that takes."""

import threading
from collections.abc import Callable

import pytest

from aggregating_worker.process.threads import Threads


def run(threads: Threads, call: Callable[[], None] = lambda: None) -> threading.Event:
    """Run a call; return what is set when it has ended."""
    done = threading.Event()

    def run() -> None:
        call()
        done.set()

    threads.run(run)
    return done


def started(threads: Threads) -> int:
    return threads._started


def test_a_thread_that_is_idle_takes_the_next_call() -> None:
    threads = Threads()
    seen: list[threading.Thread] = []
    for _ in range(5):
        assert run(threads, lambda: seen.append(threading.current_thread())).wait(10)
        with threads._idle:  # it is idle a moment after the call has ended
            pass
    assert len({*seen}) == started(threads) == 1
    assert (seen[0].daemon, seen[0].name) == (True, "process")


def test_calls_run_side_by_side_and_one_too_many_waits() -> None:
    threads, barrier, go = Threads(3), threading.Barrier(4), threading.Event()

    def block() -> None:
        barrier.wait(10)
        go.wait(10)

    first = [run(threads, block) for _ in range(3)]
    barrier.wait(10)
    waits = run(threads)
    assert (started(threads), waits.is_set()) == (3, False)
    go.set()
    assert all(each.wait(10) for each in (*first, waits))
    assert started(threads) == 3


def test_where_no_more_threads_can_be_started_calls_wait_for_those_that_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            Threads().run(lambda: None)
    threads, go = Threads(), threading.Event()

    def block() -> None:
        go.wait(10)

    first = run(threads, block)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    waits = run(threads)
    assert (started(threads), waits.is_set()) == (1, False)
    go.set()
    assert first.wait(10)
    assert waits.wait(10)
