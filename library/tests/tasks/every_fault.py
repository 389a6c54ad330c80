"""A task in which an item can go wrong in every way: before it runs, while it does, and in what it returns."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from aggregating_worker import ItemFailed
from aggregating_worker.outcome.plain import NO_FORM


class Item(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    count: int = Field(1, ge=1)


class Input(BaseModel):
    items: list[Item]


def raising(error: BaseException) -> Callable[[], Any]:
    def act() -> Any:
        raise error

    return act


INVALID: list[tuple[Any, str]] = [
    ({}, "name is missing"),
    ({"nmae": "x"}, "name is missing; there is no field nmae"),
    ({"name": "x", "count": 0}, "count should be greater than or equal to 1"),
    (None, "should be a valid dictionary or instance of Item"),
    ({"name": ["x"]}, "name should be a valid string"),
]
"""What is no item, and what is said of it."""

FAULTS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "raises": (raising(ValueError("no")), {"type": "ValueError", "message": "no"}),
    "fails": (
        raising(ItemFailed("no", type="Blurred", details={"by": 3})),
        {"type": "Blurred", "message": "no", "details": {"by": 3}},
    ),
    "returns an error": (lambda: {"error": "model failed"}, {"type": "Error", "message": "model failed"}),
    "returns more": (
        lambda: {"error": "out of memory", "code": 7},
        {"type": "Error", "message": "out of memory", "details": {"code": 7}},
    ),
    "two keys": (
        lambda: {1: "a", "1": "b"},
        {"type": "ValueError", "message": 'result has two keys that are the text "1" in JSON.'},
    ),
    "NaT": (lambda: [np.datetime64("NaT")], {"type": "ValueError", "message": f"result[0] is NaT, {NO_FORM}."}),
    "NaN": (
        lambda: {"embedding": [0.1, float("nan")]},
        {"type": "ValueError", "message": f"result.embedding[1] is NaN, {NO_FORM}."},
    ),
    "a key": (lambda: {float("nan"): 1}, {"type": "ValueError", "message": f"result has the key nan, {NO_FORM}."}),
    "Decimal": (lambda: Decimal("NaN"), {"type": "ValueError", "message": f"result is NaN, {NO_FORM}."}),
    "complex": (lambda: 1j, {"type": "ValueError", "message": f"result is a complex number, {NO_FORM}."}),
    "escape": (raising(ValueError("\x1b[2J\x9b\u202e")), {"type": "ValueError", "message": "\x1b[2J\x9b\u202e"}),
}
"""What an item may do, and its failure."""


def load() -> None:
    pass


def process(item: Item, job: Input) -> Any:
    return FAULTS[item.name][0]() if item.name in FAULTS else item.name
