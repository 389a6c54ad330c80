"""A task that yields, and also answers ``{"words": […]}`` as an older worker did."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel


class Input(BaseModel):
    items: list[list[Any]]


def single(request: dict[str, Any]) -> dict[str, Any] | None:
    return {"items": [request["words"]]} if "words" in request else None


def load() -> None:
    pass


def process(item: list[Any], job: Input) -> Iterator[Any]:
    yield from item
