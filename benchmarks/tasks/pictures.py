"""What ``handlers/pictures.py`` does, as this worker's task."""

import time
from typing import Any

from pydantic import BaseModel

SIZE = 500_000


class Input(BaseModel):
    items: list[str]


def load() -> None:
    pass


def process(item: str, job: Input) -> dict[str, Any]:  # noqa: ARG001
    return {"began": time.monotonic(), "image": b"\x89PNG\r\n\x1a\n" + item.encode().ljust(SIZE)}
