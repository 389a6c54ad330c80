"""The starting point ``batch``, whose task lies beside it as ``batch.py``; each result says when its call began."""

import time
from typing import Any

from batch import Input, load
from batch import process_batch as classify

__all__ = ["Input", "load", "process_batch"]


def process_batch(items: list[str], job: Input) -> list[dict[str, Any]]:
    began = time.monotonic()
    return [{"began": began, **result} for result in classify(items, job)]
