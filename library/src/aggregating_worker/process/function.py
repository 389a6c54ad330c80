"""The task's function: which of the two it is, its kind, and whether it asks for a context."""

import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from aggregating_worker.refusal import Refused

Function = Callable[..., Any]


@dataclass(frozen=True)
class TaskFunction:
    """The task's ``process`` or, if ``batched``, its ``process_batch``."""

    function: Function
    batched: bool
    is_async: bool
    in_parts: bool
    """Whether it is a generator: its parts are streamed as it yields them, and all of them are the result."""
    with_context: bool
    """Whether it takes a third argument, ``context`` or ``contexts``."""

    @classmethod
    def of(cls, task: ModuleType) -> "TaskFunction":
        """Return the function of ``task``; raise ``Refused`` if there is not exactly one that can be used."""
        names = [name for name in ("process", "process_batch") if callable(getattr(task, name, None))]
        if len(names) != 1:
            raise Refused("task.py must define exactly one of process and process_batch.")
        [name] = names
        function = getattr(task, name)
        is_async, in_parts = kind(function)
        if in_parts and name == "process_batch":
            raise Refused("task.process_batch must return a list with a result per item: only process may yield.")
        return cls(function, name == "process_batch", is_async, in_parts, wants_context(function, name))


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
