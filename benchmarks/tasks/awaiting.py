"""What ``handlers/async_generator.py`` does, as this worker's task."""

import asyncio
import time
from typing import Any

from pydantic import BaseModel


class Input(BaseModel):
    items: list[str]
    seconds: float = 0


def load() -> None:
    pass


async def process(item: str, job: Input) -> dict[str, Any]:
    began = time.monotonic()
    await asyncio.sleep(job.seconds)
    return {"began": began, "text": item}
