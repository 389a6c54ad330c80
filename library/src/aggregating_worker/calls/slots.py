"""The slots of all processes: each runs one call after another, until every item has its outcome."""

import asyncio
import contextvars
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from aggregating_worker import log
from aggregating_worker.calls.again import Again, Call, suspects
from aggregating_worker.calls.health import Health
from aggregating_worker.calls.pace import Pace
from aggregating_worker.calls.room import Room
from aggregating_worker.calls.turns import Group, Turns
from aggregating_worker.calls.work import Item, Work
from aggregating_worker.outcome.result import Raised
from aggregating_worker.process.attempt import Attempt
from aggregating_worker.process.process import Process
from aggregating_worker.sentence import counted
from aggregating_worker.settings import Settings

LET_GO_AFTER = 1.0
"""Seconds in which a call ends that was cancelled, or its process shows that it is alive."""
PINGS = 16
"""How often a process is asked whether it is alive in the time of a call, where suspects are tried side by side."""
LONGEST_LET_GO = 60.0
"""Seconds in which a call ends whose job was cancelled, at most; a process that loads quickly is not given as long."""
PATIENCE = 60.0
"""Seconds that the other calls in a process have that is to end, if there is no ``ITEM_TIMEOUT``."""

CANCELLED = Raised("CancelledError", "Something other than the worker cancelled the call.", "")


@dataclass(eq=False)
class Seat:
    """What is kept about a process: its slots in use, and what it has to find out before it goes on."""

    process: Process
    health: Health = field(default_factory=Health)
    in_use: int = 0
    suspects: deque[list[Call]] = field(default_factory=deque)
    """Calls that a process had in hand when it died: those of one list are tried side by side, with no other."""
    trial: deque[Call] | None = None
    """What is left of the suspects that are being tried; None if none are."""
    alone: bool = False
    """Whether the trial is of one call only."""
    without_gpu: list[Call] = field(default_factory=list)
    """Calls that have met a CUDA error, which one of them has caused."""
    silent: bool = False
    """Whether it is ended because it does not answer while a call is over its time: which call it is, is not known."""

    @property
    def free(self) -> int:
        """How many calls could start."""
        return self.process.slots - self.in_use if self.process.ready else 0


class Slots:
    """Runs the items of all jobs in ``processes``, each of which has a slot for every call that it may have at once.

    A slot in use is an asyncio task, which sees a call through. Whatever ends, ``look`` is called: it starts calls
    while there are slots for them.
    """

    def __init__(self, processes: Sequence[Process], settings: Settings, *, batched: bool, slots: int) -> None:
        self.turns = Turns()
        self.room = Room(self.turns, settings.undelivered_bytes)
        self.on_room: Callable[[], None] = lambda: None
        """Called when there may be room for another job."""
        self.on_end: Callable[[str], None] = self._fail_all
        """Called when the worker has to end, with the reason."""
        self.until_delivered = False
        """Whether somebody calls ``delivered`` for each job; else a job is out of hand when it has left."""
        self._seats = [Seat(process) for process in processes]
        self._slots = slots
        self._batched = batched
        self._most = settings.batch_size if batched else 1
        self._timeout = settings.item_timeout
        self._pace = Pace(self._most, settings.batch_wait)
        self._alarm: asyncio.Handle | None = None
        self._alarm_at = 0.0
        self._again = Again()
        self._lost = ""
        self._numbers = count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._serving: asyncio.AbstractEventLoop | None = None
        self._has_succeeded = False

    def serve(self) -> None:
        """Have the processes run calls on the running event loop."""
        if self._serving is not (loop := asyncio.get_running_loop()):
            self._serving = loop
            for seat in self._seats:
                seat.process.serve(self, self._slots, max(self._timeout, 1.0) if self._timeout else PATIENCE)

    @property
    def most_items(self) -> int:
        """How many items can be in calls at once."""
        return self._slots * self._most * len(self._seats)

    @property
    def under_way(self) -> int:
        """How many slots are in use."""
        return sum(seat.in_use for seat in self._seats)

    def for_jobs(self) -> int:
        """Return how many jobs of one item could start now or, of batches, in the next call."""
        calls = sum(
            max(seat.free, int(self._batched)) for seat in self._seats if seat.process.ready and not seat.suspects
        )
        return self.room.for_jobs(calls - len(self._again), self._most)

    def enter(self, work: Work) -> None:
        """Take on a job."""
        self.serve()
        self.room.enter(work)
        if self._lost:
            self.on_end(self._lost)
        self.offer(work)

    def offer(self, work: Work) -> None:
        """Let the items of a job start, if they could."""
        self.turns.enter(work)
        if work.startable:
            self.look()

    def leave(self, work: Work) -> None:
        """Drop what a job has waiting, and the calls that nobody else waits for."""
        work.end()
        for seat in self._seats:
            seat.process.forget(work.shared.number)
            for attempt in seat.process.attempts.values():
                attempt.wake()
        if not self.until_delivered:
            self.room.leave(work)
        self.look()

    def delivered(self, job_id: str) -> None:
        """Let go of a job and its results. It has left, unless it was cancelled while a chunk was on its way."""
        for work in self.room.of(job_id):
            self.room.leave(work)
            self.leave(work)

    def look(self) -> None:
        """Start calls while there are free slots and items that need not wait for more."""
        for seat in self._seats:
            while seat.free > 0 and (call := self._draw(seat)):
                self._start(seat, call)
        self.on_room()

    def _draw(self, seat: Seat) -> Call | None:
        """Return the call that is to start next in a process, if there is one."""
        if seat.suspects or seat.trial is not None:
            if not (seat.trial or seat.in_use or seat.process.attempts):
                seat.trial = deque(seat.suspects.popleft()) if seat.suspects else None
                seat.alone = seat.trial is not None and len(seat.trial) == 1
            if seat.trial is not None or seat.suspects:
                return seat.trial.popleft() if seat.trial else None
        if self._again:
            return self._again.popleft()
        if not self.turns:
            return None
        if self.room.full:
            oldest = self.room.oldest
            items = [oldest.start() for _ in range(min(oldest.startable, self._most))] if oldest else []
        else:
            items = self.turns.draw(self._most, self._held)
        return Call(items) if items else None

    def _held(self, group: Group) -> bool:
        """Whether a call of ``group`` waits for more items; then it is looked at again in time."""
        if not self._batched:
            return False
        until, now = self._pace.wait_until(group, len(self.turns.jobs)), time.monotonic()
        if now >= until:
            return False
        if not self._alarm or self._alarm_at > until:
            if self._alarm:
                self._alarm.cancel()
            self._alarm = asyncio.get_running_loop().call_later(until - now, self._look_again)
            self._alarm_at = until  # uvloop's handle of a moment does not say when
        return True

    def _look_again(self) -> None:
        self._alarm = None
        self.look()

    def _start(self, seat: Seat, call: Call) -> None:
        """Start a call, in a slot of its own."""
        pickled = [(item, data) for item in call.items if item.work.alive and (data := item.pickled()) is not None]
        if not pickled:
            self._again.resolve(call)
            return
        items = [item for item, _ in pickled]
        context = items[0].work.context if len({item.work for item in items}) == 1 else contextvars.Context()
        attempt = Attempt(next(self._numbers), items, context, call.deaths)
        seat.in_use += 1
        seat.process.begin(attempt, [data for _, data in pickled])
        # Not in the context of the job whose end has led here.
        task = asyncio.create_task(self._slot(seat, call, attempt), context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _slot(self, seat: Seat, call: Call, attempt: Attempt[Item]) -> None:
        """See a call through: when it has ended, each of its items has its outcome, or is to be tried again."""
        began = time.monotonic()
        await self._ended(seat, attempt)
        seat.in_use -= 1
        if self._batched:
            now = time.monotonic()
            crowd = len(self.room) - (len(self.room.unmade) - len(self.turns.jobs))
            self._pace.ended(now, now - began, crowd)
        items = attempt.items
        call.items = [items[place] for place in sorted(attempt.left) if items[place].work.alive]
        if attempt.died and not attempt.late:  # ``gone`` has seen to them
            self._again.resolve(call)
        elif attempt.late and call.items:
            message = f"No result within {self._timeout:g} s per item (ITEM_TIMEOUT)."
            self._again.fail(call, Raised("TimeoutError", message, ""), len(items))
        elif attempt.overdue and call.items:  # it ends just as its process is killed, which was silent
            self._try_suspects(seat, [Call(call.items, deaths=attempt.deaths + 1, overdue=True)], "")
            self._again.resolve(call)
        elif attempt.unwanted or not (raised := attempt.raised or (attempt.cancelled and CANCELLED)):
            self._has_succeeded |= not attempt.unwanted
            seat.health.succeeded()
            self._again.resolve(call)
        elif raised.broken == "CUDA" and not (seat.alone and len(call.items) == 1):
            log.error("A CUDA error stays for the life of a process: trying again in another", trace=raised.trace)
            seat.without_gpu.append(Call(call.items, deaths=attempt.deaths + 1))
            self._again.resolve(call)
        else:
            if seat.health.failed(raised, (item.work.job_id for item in call.items)) and self._has_succeeded:
                self._replace(seat, raised)
            self._again.fail(call, raised, len(items))
        self.look()

    async def _ended(self, seat: Seat, attempt: Attempt[Item]) -> None:
        """Return when the function has returned, or its process has ended, which it does if the function does not."""
        attempt.overdue = not await self._in_time(seat, attempt)
        if attempt.over:
            return
        seat.process.cancel(attempt)
        grace = min(max(seat.process.load_seconds, LET_GO_AFTER), LONGEST_LET_GO)
        if attempt.overdue:
            grace = LET_GO_AFTER
            attempt.late = await attempt.wait(LET_GO_AFTER, lambda: attempt.answered) and not attempt.died
            if not (attempt.late or attempt.over):
                self._end_silent(seat)
            elif attempt.late and len(attempt.items) == 1:  # at once: its call may not end before its process does
                self._fail_late(attempt.items[0])
                self.look()
        if not await attempt.wait(grace):
            seat.process.retire()
        await attempt.wait()

    async def _in_time(self, seat: Seat, attempt: Attempt[Item]) -> bool:
        """Return whether a call has ended, or nobody wants it any more, before its time is over.

        Suspects that are tried side by side have less, if the process does not answer: each has all of it alone.
        """

        def unwanted() -> bool:
            return not any(item.work.alive for item in attempt.items)

        seconds = self._timeout * len(attempt.items) or math.inf
        if seat.trial is None or seconds == math.inf:
            return await attempt.wait(seconds, unwanted)
        left = seconds
        while left > 0:
            seat.process.ping(attempt)
            turn = min(left, max(LET_GO_AFTER / 2, seconds / PINGS))
            if await attempt.wait(turn, unwanted):
                return True
            left -= turn  # and not by the clock, which goes on while the worker is frozen
            if not attempt.answered and seat.in_use > 1:
                self._end_silent(seat)
                return await attempt.wait()
        return False

    def _end_silent(self, seat: Seat) -> None:
        seat.silent = True
        seat.process.kill()

    def gone(self, process: Process, in_hand: Sequence[Attempt[Item]], why: str, *, on_purpose: bool) -> None:
        """See ``process.Owner``: by halves of all that it had in hand, those that end a process are found."""
        [seat] = [seat for seat in self._seats if seat.process is process]
        calls = []
        for attempt in in_hand:
            items = [attempt.items[place] for place in sorted(attempt.left)]
            if not attempt.late and (items := [item for item in items if item.work.alive]):
                # Fewer than it had: it may have been one of those whose jobs are over.
                deaths = attempt.deaths + 1 if len(items) == len(attempt.items) else 1
                calls.append(Call(items, deaths=deaths, overdue=attempt.overdue))
            attempt.died = not attempt.over
            attempt.over = True
            attempt.wake()
        silent, seat.silent = seat.silent, False
        if seat.trial:
            seat.suspects.appendleft([*seat.trial])
        seat.trial, seat.alone = None, False
        if not (on_purpose or calls or process.over):
            log.error(f"The task's process {why}.")
        if on_purpose:
            self._again.extendleft(Call(call.items, deaths=call.deaths - 1) for call in calls)
            if seat.without_gpu:
                seat.suspects.extendleft(suspects(seat.without_gpu)[::-1])
                seat.without_gpu = []
        elif calls:
            log.error(
                f"The task's process {'did not answer' if silent else why}: it had {counted(len(calls), 'call')}."
            )
            self._try_suspects(seat, calls, "" if silent else why)
        self.look()

    def _try_suspects(self, seat: Seat, calls: Sequence[Call], why: str) -> None:
        """Try by halves what a process had when it ended, or did not answer; fail an item that was alone in it."""
        if len(calls) > 1 or len(calls[0].items) > 1:
            seat.suspects.extendleft(suspects(calls)[::-1])
        elif calls[0].deaths == 1 or not (why or calls[0].overdue):  # it may have been chance
            seat.suspects.appendleft([*calls])
        elif not why:
            self._fail_late(calls[0].items[0])
        else:
            died = Raised("ProcessDied", f"The process that ran it {why}.", "")
            calls[0].items[0].settle(died.outcome(calls[0].items[0].index))
            if seat.health.failed(died, [calls[0].items[0].work.job_id]) and self._has_succeeded:
                self._replace(seat, died)

    def _fail_late(self, item: Item) -> None:
        item.fail("TimeoutError", f"No result within {self._timeout:g} s per item (ITEM_TIMEOUT).")

    def _replace(self, seat: Seat, raised: Raised) -> None:
        """Replace a process in which everything fails alike; if the next is no better, end the worker."""
        why = f"Calls of several jobs fail alike, one after another ({raised.kind}: {raised.message})"
        if seat.health.hopeless:
            self.lost(f"{why}, in a fresh process, too")
        else:
            log.error(f"{why}: the process is replaced.")
            seat.process.retire()

    def lost(self, reason: str) -> None:
        """See ``process.Owner``."""
        self._lost = reason
        self.on_end(reason)

    def _fail_all(self, reason: str) -> None:
        """Fail what is left of every job, where no other worker could do it."""
        for work in self.room.unmade:
            work.fail_rest("ProcessDied", reason)
