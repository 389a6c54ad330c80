"""``PROCESSES=0``: the task runs on the worker's own event loop and threads, where a debugger can stop it.

Nothing can be ended here: a call that never returns keeps its slot, and one that crashes takes the worker with it.
"""

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable
from contextlib import suppress
from types import ModuleType
from typing import Any

from aggregating_worker.outcome.result import describe
from aggregating_worker.process.folders import Folders, remove
from aggregating_worker.process.function import TaskFunction
from aggregating_worker.process.process import Owner, Process
from aggregating_worker.process.run import Runner, awaited
from aggregating_worker.process.threads import Threads
from aggregating_worker.refusal import Refused


class Within(Process):
    """Runs ``task`` in the worker's process."""

    def __init__(self, task: ModuleType, function: TaskFunction) -> None:
        super().__init__()
        self._task = task
        self._function = function
        self._loading: object = None
        self._folders = Folders.new()

    def load(self) -> None:
        """Load the task; if its ``load`` is async, it runs later, on the event loop. Raises ``Refused`` if it fails."""
        try:
            self._loading = self._task.load()
        except BaseException as error:
            self._cannot_load(1, describe(error))
            raise Refused(self._fault) from None

    def serve(self, owner: Owner, slots: int, patience: float) -> None:
        """See ``Process``."""
        super().serve(owner, slots, patience)
        self._runner = Runner(self._function, self._folders, self._say, Threads(slots).run)
        if inspect.isawaitable(self._loading):
            self._loading = asyncio.ensure_future(self._load(owner, self._loading))
        else:
            self.ready = True

    async def _load(self, owner: Owner, loading: Awaitable[Any]) -> None:
        try:
            await loading
        except BaseException as error:
            self._cannot_load(1, describe(error))
            owner.lost(self._fault)
        else:
            self.ready = True
            owner.look()

    def retire(self) -> None:
        """See ``Process``; here nothing can be done."""

    def kill(self) -> None:
        """See ``Process``; here nothing can be done."""

    def end(self) -> None:
        """Unload: on an event loop of its own, if that is async."""
        with suppress(Exception):
            if inspect.isawaitable(unloading := self._task.unload()):
                asyncio.run(awaited(unloading))
        remove(self._folders.found())

    def _ask(self, kind: int, number: int, payload: bytes = b"", context: contextvars.Context | None = None) -> None:
        self._runner.take(kind, number, payload, context)

    def _say(self, frames: bytes) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits for this
            if self._loop:
                self._loop.call_soon_threadsafe(self._hear, frames)
