"""A task whose items say what pictures they return, as an async function."""

from typing import Any

from tests.tasks.pictures import Input, draw, load

__all__ = ["Input", "load", "process"]


async def process(item: dict[str, Any], job: Input) -> Any:
    return draw(item)
