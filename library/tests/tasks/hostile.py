"""A task that does to the worker what its items name, as a plain function."""

import asyncio
import dataclasses
import datetime
import enum
import io
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel, ConfigDict

_four = threading.Barrier(4)


class Input(BaseModel):
    model_config = ConfigDict(extra="forbid")

    items: list[Any]
    option: int = 0


class Model(BaseModel):
    day: datetime.date = datetime.date(2020, 2, 2)


@dataclasses.dataclass
class Point:
    x: int = 1


class Colour(enum.Enum):
    RED = "red"


class UnreadableError(Exception):
    def __str__(self) -> str:
        raise SystemExit


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    """As people write them. Nothing can be assigned to one, not even by the interpreter's own clean-up."""

    status: int = 503


def raising(error: BaseException) -> Callable[[], NoReturn]:
    def act() -> NoReturn:
        raise error

    return act


def numpy() -> Any:
    """Import it where it is asked for: a worker starts sooner without it."""
    import numpy

    return numpy


def cycle() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


def deep() -> list[Any]:
    nest: list[Any] = []
    for _ in range(100_000):
        nest = [nest]
    return nest


FINE: dict[str, tuple[Callable[[], Any], Any]] = {
    "text": (lambda: "é😀\u2028", "é😀\u2028"),
    "none": (lambda: None, None),
    "number under error": (lambda: {"error": 0.03}, {"error": 0.03}),
    "model": (Model, {"day": "2020-02-02"}),
    "dataclass": (Point, {"x": 1}),
    "enum": (lambda: Colour.RED, "red"),
    "datetime": (lambda: datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC), "2020-01-01T00:00:00Z"),
    "binary": (lambda: b"\xff", {"content_type": "application/octet-stream", "bytes": 1, "data": "/w=="}),
    "set": (lambda: {1}, [1]),
    "numpy scalar": (lambda: numpy().float32(0.5), 0.5),
    "numpy array": (lambda: {"a": numpy().arange(4).reshape(2, 2)}, {"a": [[0, 1], [2, 3]]}),
}
"""What a person would return, and the JSON that it becomes."""

FAULTY: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "raise": (raising(ValueError("no")), ("ValueError",)),
    "stop iteration": (raising(StopIteration("no")), ("StopIteration", "RuntimeError")),
    "exit": (raising(SystemExit(3)), ("SystemExit",)),
    "interrupt": (raising(KeyboardInterrupt()), ("KeyboardInterrupt",)),
    "cancelled": (raising(asyncio.CancelledError()), ("CancelledError",)),
    "generator exit": (raising(GeneratorExit()), ("GeneratorExit",)),
    "unreadable": (raising(UnreadableError()), ("UnreadableError",)),
    "frozen": (raising(FrozenError()), ("FrozenError",)),
    "huge message": (raising(ValueError("x" * 5_000_000)), ("ValueError",)),
    "surrogate message": (raising(ValueError("\ud800")), ("ValueError",)),
    "nul message": (raising(ValueError("\x00" * 500)), ("ValueError",)),
    "object": (object, ("TypeError",)),
    "nan": (lambda: float("nan"), ("ValueError",)),
    "nan in array": (lambda: numpy().array([float("nan")]), ("ValueError",)),
    "surrogate": (lambda: "\ud800", ("UnicodeEncodeError",)),
    "surrogate key": (lambda: {"\ud800": 1}, ("UnicodeEncodeError",)),
    "cycle": (cycle, ("ValueError",)),
    "deep": (deep, ("ValueError",)),
    "huge integer": (lambda: 10**5000, ("ValueError",)),
}
"""What must cost its own item only, and the failure's type; in async code, Python changes some of them."""


def load() -> None:
    pass


def act(item: Any) -> Any:
    """Do what ``item`` names."""
    match item:
        case {"bytes": size}:
            return "x" * size
        case {"read": fifo}:
            return Path(fifo).read_text()
        case {"print": text}:
            print(text)
        case "close standard output":
            sys.stdout = io.StringIO()
            sys.stdout.close()
            return None
        case {"touch": file}:
            with Path(file).open("a") as trace:
                trace.write(".")
            return None
        case {"log": file, "item": value}:
            with Path(file).open("a") as log:
                log.write(f"{value}\n")
            return value
        case "meet":
            return _four.wait(timeout=10) >= 0
        case str() if item in FINE:
            return FINE[item][0]()
        case str() if item in FAULTY:
            return FAULTY[item][0]()
    return item


def blocks(item: Any) -> bool:
    """Whether ``act`` waits for something outside; an async task does that in a thread."""
    return item == "meet" or (isinstance(item, dict) and "read" in item)


def process(item: Any, job: Input) -> Any:
    return act(item)
