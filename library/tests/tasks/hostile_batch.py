"""A task that does to the worker what its items name, a batch at a time."""

from typing import Any

from tests.tasks.hostile import Input, act, load

__all__ = ["Input", "load", "process_batch"]


def process_batch(items: list[Any], job: Input) -> list[Any]:
    return [act(item) for item in items]
