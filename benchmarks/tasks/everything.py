"""A task whose items do what tasks do wrong, as the kind of function that ``KIND`` names."""

import asyncio
import ctypes
import os
import resource
import time
from itertools import count
from typing import Any

from pydantic import BaseModel

_failures = count()
"""Failures that are alike, one after another, would mean that the process is broken."""


class Input(BaseModel):
    items: list[Any]


def load() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def act(item: Any) -> Any:
    """Do what ``item`` names; a number takes 10 ms and comes back."""
    match item:
        case "raise":
            raise ValueError(next(_failures))
        case "object":
            return object()
        case "end":
            os._exit(3)
        case "crash":
            ctypes.string_at(0)
        case "hang":
            while True:
                time.sleep(0.01)
        case "hold":
            ctypes.PyDLL(None).sleep(1_000)  # and the GIL
        case {"bytes": size}:
            return "x" * size
    time.sleep(0.01)
    return item


def in_turn(item: Any, _: Input) -> Any:
    return act(item)


async def beside(item: Any, _: Input) -> Any:
    await asyncio.sleep(0.01)
    return act(item)


def together(items: list[Any], _: Input) -> list[Any]:
    return [act(item) for item in items]


match os.environ["KIND"]:
    case "batch":
        process_batch = together
    case "async":
        process = beside
    case _:
        process = in_turn
