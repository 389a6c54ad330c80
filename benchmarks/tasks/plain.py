"""What ``handlers/sync_generator.py`` does, as this worker's task."""

import time

from pydantic import BaseModel


class Input(BaseModel):
    items: list[str]
    seconds: float = 0
    size: int = 0


def load() -> None:
    pass


def process(item: str, job: Input) -> str:
    time.sleep(job.seconds)
    return f"done: {item}".ljust(job.size)
