"""Documented pattern: an item that fails is yielded under the key ``error``."""

from collections.abc import Iterator
from typing import Any

import runpod


def act(item: str) -> str:
    if item == "raise":
        raise ValueError("no")
    return f"done: {item}"


def handler(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for item in job["input"]["items"]:
        try:
            yield {"success": True, "result": act(item)}
        except ValueError as error:
            yield {"success": False, "error": str(error), "item": item}


runpod.serverless.start({"handler": handler, "return_aggregate_stream": True})
