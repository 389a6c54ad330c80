"""One pool of slots for all jobs, which take turns at them.

A *slot* is room for one call of the task's function; the worker has ``ITEM_CONCURRENCY`` of them. A call of
``process_batch`` takes items of all jobs whose options are equal, one of each in turn.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from aggregating_worker import log
from aggregating_worker.calls.attempt import Item
from aggregating_worker.calls.call import Call
from aggregating_worker.calls.function import Function, TaskFunction, kind
from aggregating_worker.calls.threads import Threads
from aggregating_worker.calls.work import Options, Work
from aggregating_worker.delivery.parts import Send
from aggregating_worker.settings import Settings

PATIENCE = 60.0
"""Seconds for which every slot may be held by a call that was given up, if there is no ``ITEM_TIMEOUT``."""
FINISHERS = 16
"""Threads that encode files and upload to the bucket."""
CROWD_AT_MOST = 0.1
"""Seconds for which a call waits for callers to send their next jobs."""


@dataclass(eq=False)
class Group:
    """Jobs whose items may share a call: those with items that could start, in the order of their turns."""

    options: Options | None
    since: float = field(default_factory=time.monotonic)
    """When the first of the waiting items came."""
    turns: deque[Work] = field(default_factory=deque)

    @property
    def waiting(self) -> int:
        """How many items could start now."""
        return sum(work.startable for work in self.turns)

    def draw(self, most: int) -> list[Item]:
        """Start up to ``most`` items, one of each job in turn."""
        items: list[Item] = []
        while self.turns and len(items) < most:
            work = self.turns.popleft()
            if work.startable:
                items.append(Item(work, work.start()))
            work.in_turn = bool(work.startable)
            if work.in_turn:
                self.turns.append(work)
        return items


class Pool:
    """The calls of ``function``: the task's ``process`` or, if ``batched``, its ``process_batch``.

    Use it on one event loop.
    """

    def __init__(self, function: Function, settings: Settings, *, batched: bool, with_context: bool = False) -> None:
        is_async, in_parts = kind(function)
        self.finishers = Threads(FINISHERS)
        self.task = TaskFunction(
            function,
            batched,
            is_async,
            in_parts,
            settings.item_timeout,
            threads=Threads(),
            finishers=self.finishers,
            with_context=with_context,
        )
        self.concurrency = settings.item_concurrency or (1 if batched else 32 if is_async else 4)
        self.most = settings.batch_size if batched else 1
        """Items per call, at most."""
        self.in_hand: Callable[[], int] = lambda: 0
        """Returns how many jobs the worker has, including those that are being delivered."""
        self.send_parts: Send | None = None
        """Posts the parts of items, if they can be streamed."""
        self.on_room: Callable[[], None] = lambda: None
        """Called when another job could start."""
        self.on_stuck: Callable[[list[str]], None] = lambda _: None
        """Called when all slots are held for good, with the ids of the jobs that another worker should do."""
        self._batch_wait = settings.batch_wait
        self._patience = max(settings.item_timeout, 1.0) if settings.item_timeout else PATIENCE
        self._works: set[Work] = set()
        self._groups: deque[Group] = deque()
        self._calls: dict[Call, float] = {}
        self._untried: deque[list[Item]] = deque()
        """Halves of failed batches whose calls were given up before trying them."""
        self._crowd = 0
        self._crowd_until = 0.0
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def making(self) -> int:
        """How many jobs have items without an outcome."""
        return sum(work.unmade for work in self._works)

    @property
    def under_way(self) -> int:
        """How many slots are in use."""
        return len(self._calls)

    def room(self) -> int:
        """Return how many jobs of one item could start now or, of batches, in the next call.

        That is free slots times items per call, minus the items that wait. If one long job fills every slot, it is 1
        once that job has its first result, so that an idle worker gets the next job first.
        """
        if self._stuck:
            return 0
        calls = max(self.concurrency - len(self._calls), int(self.task.batched))
        room = calls * self.most - sum(group.waiting for group in self._groups)
        if room > 0:
            return room
        waiting = [work for group in self._groups for work in group.turns]
        return int(len(waiting) == 1 and waiting[0].begun)

    def enter(self, work: Work) -> None:
        """Take on a job."""
        self._works.add(work)
        self.offer(work)

    def offer(self, work: Work) -> None:
        """Put ``work``, which has items that could start, in the queue for its turn; start calls."""
        if not work.startable:
            return
        if not work.in_turn:
            group = next((group for group in self._groups if group.options == work.options), None)
            if group is None:
                self._groups.append(group := Group(work.options))
            group.turns.append(work)
            work.in_turn = True
        self.start_calls()

    def leave(self, work: Work) -> "list[asyncio.Task[None]]":
        """Drop the waiting items of ``work`` and give up its calls; return the asyncio tasks that are about to end."""
        unmade = work.unmade
        ending = work.end()
        self._works.discard(work)
        ending += [task for call in list(self._calls) if (task := call.drop(work))]
        if unmade:
            self.start_calls()
        return ending

    def start_calls(self) -> None:
        """Start calls while there are free slots and items that need not wait for more."""
        while self._untried and len(self._calls) < self.concurrency:
            self._start_call(self._untried.popleft())
        passed = 0
        while len(self._calls) < self.concurrency and passed < len(self._groups):
            group = self._groups[0]
            items = [] if self._held(group) else group.draw(self.most)
            self._groups.popleft()
            if group.turns:
                self._groups.append(group)
            # An empty group has left the queue: if it counted as passed, the last group would not be reached.
            passed = 0 if items else passed + bool(group.turns)
            if items:
                self._start_call(items)
        if self.room() > 0:
            self.on_room()

    def _start_call(self, items: list[Item]) -> None:
        call = Call(self.task, self._ended, self._gave_up)
        self._calls[call] = time.monotonic()
        call.start(items)

    def _held(self, group: Group) -> bool:
        """Whether a call of a batch that is not full waits for more items: for ``BATCH_WAIT``, or for a crowd of jobs.

        Callers send their next job when the last result arrives. Starting at once would alternate half-full batches, so
        wait until as many jobs wait as were in hand when the last call ended: as long as that call took, 0.1 s at most.
        """
        if not self.task.batched or group.waiting >= self.most:
            return False
        until = group.since + self._batch_wait
        if not self._batch_wait and self._jobs_waiting < self._crowd:
            until = self._crowd_until
        now = time.monotonic()
        if now >= until:
            return False
        if self._alarm is None:
            self._alarm = asyncio.get_running_loop().call_later(until - now, self._look_again)
        return True

    def _look_again(self) -> None:
        self._alarm = None
        self.start_calls()

    @property
    def _jobs_waiting(self) -> int:
        return sum(len(group.turns) for group in self._groups)

    def _ended(self, call: Call) -> None:
        now = time.monotonic()
        took = now - self._calls.pop(call)
        in_calls = self.making - self._jobs_waiting
        self._crowd = self.in_hand() - in_calls
        self._crowd_until = now + min(took, CROWD_AT_MOST)
        self.start_calls()

    @property
    def _stuck(self) -> bool:
        return len(self._calls) == self.concurrency and all(call.given_up is not None for call in self._calls)

    def _gave_up(self, left: list[list[Item]]) -> None:
        self._untried += left
        self.start_calls()
        if self._stuck:
            asyncio.get_running_loop().call_later(self._patience, self._end_if_stuck)

    def _end_if_stuck(self) -> None:
        """End the worker if every slot has long been held by a call that was given up.

        The jobs of those calls would be stuck in any worker: their results so far are kept, their other items fail. All
        other jobs are handed back for another worker.
        """
        latest = time.monotonic() - self._patience * 0.99
        if not self._stuck or any((call.given_up or 0) > latest for call in self._calls):
            return
        log.error(f"Calls that do not return hold every slot (ITEM_CONCURRENCY={self.concurrency}): the worker ends.")
        guilty = {item.work for call in self._calls for item in call.items}
        hand_back = [work.job_id for work in self._works if work.unmade and work not in guilty]
        for work in guilty:
            work.fail_rest("WorkerStuck", "Not tried: items that do not return hold every slot of the worker.")
        self.on_stuck(hand_back)
