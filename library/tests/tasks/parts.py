"""A task whose items say what they yield, as a plain generator."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.tasks.hostile import Input, act, load

__all__ = ["Input", "load", "process"]


def process(item: dict[str, Any], job: Input) -> Iterator[Any]:
    try:
        yield from item["yield"]
        if "halves" in item:
            yield from ("a\ud83d", "\ude00b")
        if "then" in item:
            yield act(item["then"])
        while "for ever" in item:
            yield "."
    finally:
        if "closed" in item:
            Path(item["closed"]).touch()
