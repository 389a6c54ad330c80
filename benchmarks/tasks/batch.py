"""A model whose call takes the same time for any number of items; one by one: ``handlers/sync_generator.py``."""

import time
from typing import Any

from pydantic import BaseModel


class Input(BaseModel):
    items: list[str]
    seconds: float = 0


def load() -> None:
    pass


def process_batch(items: list[str], job: Input) -> list[dict[str, Any]]:
    began = time.monotonic()
    time.sleep(job.seconds)
    return [{"began": began, "text": item} for item in items]
