"""What ``handlers/async_generator.py`` does, as this worker's task."""

import asyncio

from pydantic import BaseModel


class Input(BaseModel):
    items: list[str]
    seconds: float = 0


def load() -> None:
    pass


async def process(item: str, job: Input) -> str:
    await asyncio.sleep(job.seconds)
    return f"done: {item}"
