"""A task whose items end their process, or never return."""

import asyncio
import ctypes
import os
import re
import resource
import signal
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, NoReturn

from pydantic import BaseModel, ConfigDict

FOR_EVER = 1_000


class Input(BaseModel):
    model_config = ConfigDict(extra="forbid")

    items: list[Any]
    option: int = 0


def segfault() -> None:
    ctypes.string_at(0)


def end() -> NoReturn:
    os._exit(3)


def kill() -> None:
    """As the system does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(FOR_EVER)


def match() -> None:
    re.match(r"(a+)+$", "a" * 40 + "b")


def hold_the_gil() -> None:
    ctypes.PyDLL(None).sleep(FOR_EVER)


def calculate() -> None:
    """Hold the GIL, too, in Python's own arithmetic."""
    int("9" * 4_000) ** 10_000_000


def turn() -> None:
    while True:
        pass


def rest() -> None:
    while True:
        time.sleep(0.01)


DEATHS = {"segfault": segfault, "abort": os.abort, "exit": end, "kill": kill}
HANGS = {"match": match, "hold the GIL": hold_the_gil, "calculate": calculate, "turn": turn, "rest": rest}


def load() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def act(item: Any) -> Any:
    """Do what ``item`` names; another item takes a moment."""
    if isinstance(item, str):
        {**DEATHS, **HANGS}[item]()
    time.sleep(0.02)
    return item


def process(item: Any, job: Input) -> Any:
    return act(item)


def in_batches(items: list[Any], job: Input) -> list[Any]:
    return [act(item) for item in items]


def in_parts(item: Any, job: Input) -> Iterator[str]:
    yield "part "
    yield str(act(item))


async def awaiting(item: Any, job: Input) -> Any:
    await asyncio.sleep(0.01)
    return act(item)


async def async_parts(item: Any, job: Input) -> AsyncIterator[str]:
    yield "part "
    await asyncio.sleep(0.01)
    yield str(act(item))
