"""A task whose items say what pictures they return, a batch at a time."""

from typing import Any

from tests.tasks.pictures import Input, draw, load

__all__ = ["Input", "load", "process_batch"]


def process_batch(items: list[dict[str, Any]], job: Input) -> list[Any]:
    return [draw(item) for item in items]
