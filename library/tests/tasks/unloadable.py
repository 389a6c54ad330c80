"""A task whose model is not there."""

from pydantic import BaseModel


class Input(BaseModel):
    items: list[int]


def load() -> None:
    raise FileNotFoundError("the model is not there")


def process(item: int, job: Input) -> int:
    return item
