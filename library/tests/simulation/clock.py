"""Virtual time: an event loop whose clock jumps to what comes next, and a world that goes on while that is frozen."""

import asyncio
import heapq
import math
import random
import selectors
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any
from unittest import mock

TURN = 1e-6
"""Seconds that a turn of the event loop takes."""
TURNS_AT_ONCE = 20_000
"""Turns without a pause: more are a loop that never rests."""


class Broken(Exception):
    """A promise does not hold; the text says which."""


class World:
    """All that the worker reaches over a socket: callbacks at times of the clock, and sockets of its own."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 1_000.0
        self.frozen_until = 0.0
        self.idle: Callable[[], None] = lambda: None
        """Called before time passes, when the worker has nothing left to do."""
        self.broken = ""
        """The first promise that has been found not to hold."""
        self.history: list[tuple[float, str]] = []
        """What has happened, and when."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._sockets = Ordered()

    def note(self, what: str) -> None:
        """Write down what happens."""
        self.history.append((self.now, what))

    def check(self, holds: bool, promise: str) -> None:
        """End the run, unless the promise holds."""
        if not (holds or self.broken):
            self.broken = promise

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        """Do something after so many seconds."""
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), do))

    def listen(self, end: socket.socket, read: Callable[[], None]) -> None:
        """Call ``read`` whenever something can be read."""
        self._sockets.register(end, selectors.EVENT_READ, read)

    def hang_up(self, end: socket.socket) -> None:
        """Close a socket that is listened to."""
        self._sockets.unregister(end)
        end.close()

    def freeze(self, seconds: float) -> None:
        """Stop the worker, and the processes of its task, for so long."""
        self.frozen_until = self.now + seconds

    @property
    def next(self) -> float:
        """When it does something next."""
        return self._events[0][0] if self._events else math.inf

    def react(self) -> None:
        """Read what has come, and do what is due."""
        while ready := self._sockets.select(0):
            for key, _ in ready:
                key.data()
        while self.next <= self.now:
            heapq.heappop(self._events)[2]()

    def close(self) -> None:
        """Close the sockets that are open."""
        for key in [*self._sockets.get_map().values()]:
            self.hang_up(key.fileobj)  # type: ignore[arg-type]
        self._sockets.close()


class Ordered(selectors.DefaultSelector):
    """Names what is ready in the order of registration, which no kernel has a say in."""

    def __init__(self) -> None:
        super().__init__()
        self._ages: dict[int, int] = {}
        self._numbers = count()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = super().register(fileobj, events, data)
        self._ages[key.fd] = next(self._numbers)
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(timeout)
        return sorted(ready, key=lambda each: self._ages[each[0].fd]) if len(ready) > 1 else ready


class Jumping(Ordered):
    """Waits for nothing: when the worker has nothing to do, it is the time of what comes next."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        world, due = self._world, math.inf if timeout is None else self._world.now + timeout
        while True:
            world.react()
            while world.frozen_until > world.now:
                world.now = min(world.next, world.frozen_until)
                world.react()
            if world.broken:
                raise Broken(world.broken)
            ready = super().select(0)
            if ready or due <= world.now:
                self._turns += 1
                world.now += TURN
                if self._turns > TURNS_AT_ONCE:
                    raise Broken("The worker is busy for ever.")
                return ready
            world.idle()
            if world.broken:
                raise Broken(world.broken)
            if (soonest := min(due, world.next)) == math.inf:
                raise Broken("Nothing will ever happen any more.")
            world.now, self._turns = soonest, 0


class Loop(asyncio.SelectorEventLoop):
    """The worker's event loop in ``world``. A connection that is opened on it leads to ``connect``."""

    def __init__(self, world: World) -> None:
        super().__init__(Jumping(world))
        self._world = world

    def time(self) -> float:
        return self._world.now

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, port))]

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """Run it here and now: a thread would take real time."""
        done = self.create_future()
        done.set_result(func(*args))
        return done


@contextmanager
def virtual(world: World) -> Iterator[Loop]:
    """Have this thread live in the time of ``world``, and Python's own random numbers follow from its seed."""
    before, loop = random.getstate(), Loop(world)
    random.seed(world.random.random())
    try:
        with mock.patch("time.monotonic", lambda: world.now):
            yield loop
    finally:
        random.setstate(before)
        loop.close()
        world.close()
