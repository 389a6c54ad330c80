"""Faults planted around any task, in the kind of function that it has: plain, async, a generator, or a batch's.

An item is told by its index, which ``first_index`` lets a caller choose: what the task is asked for stays as it is.
"""

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from aggregating_worker.context import Context
from aggregating_worker.process.function import kind, wants_context

FAULTS = "PLANTED_FAULTS"
"""The variable with the folder in which faults are planted."""


class PlantedError(Exception):
    """What a planted item raises."""


class Faults:
    """The faults in ``folder``, for the items of a worker and for the test that plants them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fail(self, index: int) -> None:
        """Have the item of this index raise."""
        (self._folder / f"{index}.fail").touch()

    def end_process(self, index: int) -> None:
        """Have the item of this index end its process, as a crash does."""
        (self._folder / f"{index}.end").touch()

    def hold(self, index: int) -> None:
        """Have the item of this index wait until ``release``."""
        (self._folder / f"{index}.hold").touch()

    def release(self, index: int) -> None:
        """Let the item go on."""
        (self._folder / f"{index}.hold").unlink(missing_ok=True)

    def called(self) -> list[int]:
        """Return the indices of the items that were begun, each as often as it was."""
        log = self._folder / "called"
        return [int(line) for line in log.read_text().split()] if log.exists() else []

    def meet(self, context: Context) -> Iterator[None]:
        """Do to an item what is planted for it; yield as long as it is to wait."""
        with (self._folder / "called").open("a") as log:
            log.write(f"{context.index}\n")
        if (self._folder / f"{context.index}.fail").exists():
            raise PlantedError("planted")
        if (self._folder / f"{context.index}.end").exists():
            os._exit(1)
        while (self._folder / f"{context.index}.hold").exists():
            yield

    def wait(self, *contexts: Context) -> None:
        """Meet what is planted, in a thread."""
        for context in contexts:
            for _ in self.meet(context):
                time.sleep(0.01)

    async def wait_async(self, *contexts: Context) -> None:
        """Meet what is planted, on an event loop."""
        for context in contexts:
            for _ in self.meet(context):
                await asyncio.sleep(0.01)


def plant(task_file: str) -> None:
    """Be the module ``task`` in ``task_file``, with its function in a wrapper of its own kind."""
    spec = spec_from_file_location("task", task_file)
    assert spec is not None and spec.loader is not None
    task = sys.modules["task"] = module_from_spec(spec)  # the one that modules beside it import
    spec.loader.exec_module(task)
    name = "process_batch" if callable(getattr(task, "process_batch", None)) else "process"
    setattr(task, name, _wrapped(task, name, Faults(Path(os.environ[FAULTS]))))


def _wrapped(task: ModuleType, name: str, faults: Faults) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(task, name)
    with_context = wants_context(function, name)
    is_async, in_parts = kind(function)

    def arguments(*given: Any) -> tuple[Any, ...]:
        return given if with_context else given[:2]

    def process(item: Any, job: Any, context: Context) -> Any:
        faults.wait(context)
        return function(*arguments(item, job, context))

    def process_parts(item: Any, job: Any, context: Context) -> Iterator[Any]:
        faults.wait(context)
        yield from function(*arguments(item, job, context))

    async def process_async(item: Any, job: Any, context: Context) -> Any:
        await faults.wait_async(context)
        return await function(*arguments(item, job, context))

    async def process_async_parts(item: Any, job: Any, context: Context) -> AsyncIterator[Any]:
        await faults.wait_async(context)
        async for part in function(*arguments(item, job, context)):
            yield part

    def process_batch(items: list[Any], job: Any, contexts: list[Context]) -> Any:
        faults.wait(*contexts)
        return function(*arguments(items, job, contexts))

    async def process_batch_async(items: list[Any], job: Any, contexts: list[Context]) -> Any:
        await faults.wait_async(*contexts)
        return await function(*arguments(items, job, contexts))

    if name == "process_batch":
        return process_batch_async if is_async else process_batch
    kinds: dict[tuple[bool, bool], Callable[..., Any]] = {
        (False, False): process,
        (False, True): process_parts,
        (True, False): process_async,
        (True, True): process_async_parts,
    }
    return kinds[is_async, in_parts]


def folder_with_faults(project: Path, folder: Path) -> Path:
    """Return a folder like ``project``, in which ``task.py`` has faults planted around it."""
    folder.mkdir()
    for entry in project.iterdir():
        if entry.name not in ("handler.py", "task.py"):
            (folder / entry.name).symlink_to(entry)
    shutil.copy(project / "handler.py", folder)  # Python looks for ``task`` where this file really is
    text = f"from {__name__} import plant\n\nplant({json.dumps(str(project / 'task.py'))})\n"
    (folder / "task.py").write_text(text, encoding="utf-8")
    return folder
