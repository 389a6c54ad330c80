"""The task's function: its kind, its arguments, and how it is called."""

import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from aggregating_worker.calls.threads import Threads
from aggregating_worker.refusal import Refused

Function = Callable[..., Any]


@dataclass(frozen=True)
class TaskFunction:
    """How the task's function is called: ``timeout`` is in seconds per item, 0 for none."""

    function: Function
    batched: bool
    is_async: bool
    in_parts: bool
    """Whether it is a generator: its parts are streamed as it yields them, and all of them are the result."""
    timeout: float
    threads: Threads
    """Where a blocking function runs, and where the files of an async one are copied."""
    finishers: Threads
    """Where files are encoded and stored."""
    with_context: bool = False
    """Whether it takes a third argument, ``context`` or ``contexts``."""


def kind(function: Function) -> tuple[bool, bool]:
    """Return whether ``function``, under its decorators, is async, and whether it is a generator."""
    function = inspect.unwrap(function)
    if not (inspect.isroutine(function) or isinstance(function, partial)):
        function = type(function).__call__
    in_parts = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function), in_parts


def wants_context(function: Function, name: str) -> bool:
    """Return whether ``function`` takes a third argument, ``context`` or ``contexts``.

    Raises ``Refused``, with the right signatures, if it does not take the other two, or takes yet others.
    """
    items, contexts = ("items", "contexts") if name == "process_batch" else ("item", "context")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # it is not written in Python
        return False
    for arguments in ((None, None), (None, None, None)):
        with suppress(TypeError):
            bound = list(signature.bind(*arguments).arguments)
            if bound[0] == "job":  # the arguments are the wrong way round
                break
            if len(arguments) == 2 and contexts not in signature.parameters:
                return False
            if bound[2:] == [contexts]:
                return True
    shapes = f"{name}({items}, job) or {name}({items}, job, {contexts})"
    raise Refused(f"task.{name} must be {shapes}, not {name}{signature}.")
