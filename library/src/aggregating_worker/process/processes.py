"""All the processes of a worker's task: how many there are, and that they end with the worker."""

import math
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Self

from aggregating_worker import log
from aggregating_worker.process.beside import Beside, read
from aggregating_worker.process.devices import gpus, shares
from aggregating_worker.process.function import TaskFunction
from aggregating_worker.process.process import STILL_LOADING, UNLOAD_WITHIN, Process
from aggregating_worker.process.within import Within


class Processes:
    """The processes that run the module ``task``: those that are there end with the context."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._beside: list[Beside] = []
        self._within: Within | None = None

    def start(self, task: ModuleType, count: int | None) -> None:
        """Start ``count`` processes for the task, one for each GPU if it is None; 0 is this one."""
        if count == 0:
            self._within = Within(task, TaskFunction.of(task))
            return
        for share in shares(count or max(1, len(gpus()))):
            self._beside.append(Beside(self._name, task, share))

    @property
    def all(self) -> Sequence[Process]:
        """The processes that have been started."""
        return [self._within] if self._within else self._beside

    def load(self) -> None:
        """Return once all have loaded, with a line every half minute. Raises ``Refused`` if one cannot."""
        if self._within:
            self._within.load()
        began = time.monotonic()
        while waiting := [process for process in self._beside if not process.ready]:
            if not read(waiting, STILL_LOADING):
                log.info(f"load() goes on after {time.monotonic() - began:.0f} s.")
            for process in waiting:
                process.check()

    def _stop(self) -> None:
        deadline = time.monotonic() + UNLOAD_WITHIN
        for process in self._beside:
            process.stop()
        while alive := [process for process in self._beside if not process.over]:
            if not read(alive, max(0.0, deadline - time.monotonic())):
                for process in alive:
                    process.kill()
                deadline = math.inf
        for process in self._beside:
            process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._within:
            self._within.end()
        self._stop()
