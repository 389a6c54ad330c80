"""A task whose items say what pictures they return, as a plain function."""

import random
from typing import Any

from tests.tasks.hostile import Input, load

__all__ = ["Input", "load", "process"]

PNG = b"\x89PNG\r\n\x1a\n"


def picture(seed: int, size: int) -> bytes:
    """Return ``size`` bytes that begin like a PNG file, the same for the same ``seed``."""
    return PNG + random.Random(seed).randbytes(size - len(PNG))


def draw(item: dict[str, Any]) -> Any:
    images = [picture(seed, item["size"]) for seed in item["seeds"]]
    return images[0] if len(images) == 1 else {"images": images[:2], "meta": {"thumb": images[2]}, "seed": 1}


def process(item: dict[str, Any], job: Input) -> Any:
    return draw(item)
