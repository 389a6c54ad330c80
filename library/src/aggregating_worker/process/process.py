"""The worker's side of a process that runs the task: what it has in hand, what it says, and why it ends."""

import asyncio
import contextvars
import json
import pickle
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

from aggregating_worker import log
from aggregating_worker.outcome.result import Raised, describe
from aggregating_worker.process.attempt import Attempt
from aggregating_worker.process.wire import PLACE, Ask, Flag, Frames, Say, read_outcome
from aggregating_worker.sentence import reason

LOADS = 3
"""Times that ``load`` is tried, each in a fresh process."""
STILL_LOADING = 30.0
"""Seconds after which a line says so."""
UNLOAD_WITHIN = 5.0
"""Seconds that ``unload`` has."""


class Owner(Protocol):
    """Who has calls run. Each method is called on the event loop."""

    def look(self) -> None:
        """Look for what could start: a process is ready, or has ended."""

    def gone(self, process: "Process", in_hand: Sequence[Attempt[Any]], why: str, *, on_purpose: bool) -> None:
        """Take back what the process had in hand when it ended. Another takes its place."""

    def lost(self, reason: str) -> None:
        """Do without: the process cannot load any more."""


class Process(ABC):
    """What runs up to ``slots`` calls at once. When it ends, another takes its place."""

    def __init__(self) -> None:
        self.slots = 1
        self.over = False
        """Whether it has ended, and no other takes its place."""
        self.ready = False
        """Whether it takes calls: it has loaded, and is not to end."""
        self.load_seconds = 0.0
        self.attempts: dict[int, Attempt[Any]] = {}
        self._fault = ""
        """Why it could not load, the last time."""
        self._trace = ""
        """Where that was raised: the same one is logged once."""
        self._loads = 0
        """Times that it has been started since it last had a call."""
        self._lives = 0
        self._patience = 0.0
        self._owner: Owner | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending = False
        """Whether it waits for calls that somebody wants, before it ends."""
        self._on_purpose = False
        self._frames = Frames(Say)
        self._known: set[int] = set()

    def serve(self, owner: Owner, slots: int, patience: float) -> None:
        """Run calls for ``owner``, on the running event loop.

        When the process is to end, the calls in it have ``patience`` seconds.
        """
        self._owner, self._loop = owner, asyncio.get_running_loop()
        self.slots, self._patience = slots, patience

    def begin(self, attempt: Attempt[Any], items: Sequence[bytes]) -> None:
        """Start a call on its pickled ``items``."""
        self._loads = 0  # what ends it from now on may be a call
        self.attempts[attempt.number] = attempt
        for job in {item.shared for item in attempt.items}:
            if job.number not in self._known:
                self._known.add(job.number)
                self._ask(Ask.JOB, job.number, job.payload)
        places = [(item.shared.number, item.index) for item in attempt.items]
        call = pickle.dumps((items, places), pickle.HIGHEST_PROTOCOL)
        self._ask(Ask.CALL, attempt.number, call, attempt.context)

    def forget(self, job: int) -> None:
        """Let go of the job of this number."""
        if job in self._known:
            self._known.remove(job)
            self._ask(Ask.FORGET, job)

    def cancel(self, attempt: Attempt[Any]) -> None:
        """Have an async function cancelled, and a generator closed, and ask whether the process is alive."""
        attempt.unwanted = True
        self._ask(Ask.CANCEL, attempt.number)
        self.ping(attempt)

    def ping(self, attempt: Attempt[Any]) -> None:
        """Ask the process whether it is alive."""
        attempt.answered = False
        self._ask(Ask.PING, attempt.number)

    def retire(self) -> None:
        """End the process: no new call goes to it, and the calls in it that somebody waits for have their time."""
        if self.ready:
            self.ready, self._ending, self._on_purpose = False, True, True
            self._later(self._patience, self.kill)
        self._end_if_unwanted()

    @abstractmethod
    def kill(self) -> None:
        """End it now, with its whole group."""

    @abstractmethod
    def end(self) -> None:
        """Have it unload, and end."""

    @abstractmethod
    def _ask(self, kind: int, number: int, payload: bytes = b"", context: contextvars.Context | None = None) -> None:
        """Send a frame. Where the call runs in this process, it does so in ``context``."""

    def _later(self, seconds: float, do: Any) -> None:
        """Call ``do`` after some seconds, unless the process has ended before."""
        life = self._lives
        if self._loop:
            self._loop.call_later(seconds, lambda: do() if self._lives == life else None)

    def _end_if_unwanted(self) -> None:
        if self._ending and all(attempt.unwanted for attempt in self.attempts.values()):
            if self.attempts:
                self.kill()
            else:
                self._ending = False
                self.end()

    def _hear(self, data: bytes) -> bool:
        """Do what is said in ``data``; return whether it can be read: the task may have written into the socket."""
        try:
            for heard in self._frames.feed(data):
                self._heard(*heard)
        except Exception as error:
            log.error("The task's process says what cannot be read", trace=describe(error).trace)
            return False
        return True

    def _heard(self, kind: int, number: int, payload: bytes) -> None:
        """Do what a frame says."""
        attempt = self.attempts.get(number)
        match kind:
            case Say.MADE if attempt:
                place, flags, pieces = read_outcome(payload)
                attempt.items[place].take(flags, pieces)
                attempt.left.discard(place)
                if flags & Flag.RESTART:
                    self.retire()
            case Say.RAISED if attempt:
                attempt.raised = read_raised(payload)
            case Say.ENDED if attempt:
                attempt.over = True
                if not payload:  # else there are more outcomes to come
                    attempt.cancelled = bool(attempt.left) and not attempt.raised
                    del self.attempts[number]
                attempt.wake()
                if attempt.raised and attempt.raised.broken:
                    self.retire()
            case Say.PONG if attempt:
                attempt.answered = True
                attempt.wake()
            case Say.PART if attempt:
                attempt.items[0].take_part(payload)
            case Say.PROGRESS if attempt:
                [place] = PLACE.unpack_from(payload)
                attempt.items[place].take_progress(payload[PLACE.size :])
            case Say.READY:
                self.load_seconds = float(*json.loads(payload))
                self.ready, self._trace = True, ""
                if self._owner:
                    self._owner.look()
            case Say.UNUSABLE if self._loads:  # else it has loaded
                self._cannot_load(number, read_raised(payload))
            case Say.LOGGED:
                (attempt.context if attempt else contextvars.Context()).run(log.line, *json.loads(payload))
        if attempt and attempt.over:
            if not attempt.left and number in self.attempts:
                del self.attempts[number]
                if kind == Say.MADE and self._owner:  # suspects may have waited for this
                    self._owner.look()
            self._end_if_unwanted()

    def _cannot_load(self, again: int, raised: Raised) -> None:
        what = "load() in task.py failed" if again else "task.py cannot be imported"
        self._fault = f"{what}: {reason(raised.kind, raised.message)}" if raised.trace else f"{what}: {raised.message}"
        trace = "" if raised.trace == self._trace else raised.trace
        self._trace = raised.trace
        log.error(what if trace else self._fault, trace=trace)
        if not (again and raised.trace):  # else it may go well the next time
            self._loads = LOADS


def read_raised(payload: bytes) -> Raised:
    """Return the exception that a process tells of; raise ``ValueError`` if it is none."""
    match json.loads(payload):
        case [str(), str(), str(), _, bool(), "" | "CUDA" | "restart", bool()] as told:
            return Raised(*told)
    raise ValueError("what was raised is not told as it should be")
