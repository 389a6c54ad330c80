"""The shortest port: the old handler as it is."""

from collections.abc import AsyncIterator
from typing import Any

import old_handler  # type: ignore[import-not-found]
from pydantic import BaseModel

from aggregating_worker import Context

ITEM_CONCURRENCY = 1


class Input(BaseModel):
    """Several of the old requests."""

    items: list[dict[str, Any]]


def single(request: dict[str, Any]) -> dict[str, Any] | None:
    """Take the request of an older caller, too."""
    return None if "items" in request else {"items": [request]}


def load() -> None:
    """The old handler loads what it needs when it is imported."""


async def process(item: dict[str, Any], job: Input, context: Context) -> AsyncIterator[Any]:
    """Yield what the old handler does."""
    async for part in old_handler.handler({**context.job, "input": item}):
        yield part
