"""A blocking function that keeps a processor busy with pure Python for as long as its job says."""

import time

from pydantic import BaseModel


class Input(BaseModel):
    items: list[str]
    seconds: float = 0


def load() -> None:
    pass


def process(item: str, job: Input) -> str:
    turns = 0
    end = time.thread_time() + job.seconds
    while time.thread_time() < end:
        turns += 1
    return f"{item} {turns}"
