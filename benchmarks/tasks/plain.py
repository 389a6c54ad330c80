"""What ``handlers/sync_generator.py`` does, as this worker's task."""

import time
from typing import Any

from pydantic import BaseModel


class Input(BaseModel):
    items: list[str]
    seconds: float = 0
    size: int = 0


def load() -> None:
    pass


def process(item: str, job: Input) -> dict[str, Any]:
    began = time.monotonic()
    time.sleep(job.seconds)
    return {"began": began, "text": item.ljust(job.size)}
