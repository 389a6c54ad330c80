"""Documented pattern: a plain function that checks the input and returns a generator."""

from collections.abc import Iterator
from typing import Any

import runpod


def results(items: list[str]) -> Iterator[str]:
    for item in items:
        yield f"done: {item}"


def handler(job: dict[str, Any]) -> Iterator[str] | dict[str, str]:
    items = job["input"].get("items")
    return results(items) if items else {"error": "No items provided"}


runpod.serverless.start({"handler": handler, "return_aggregate_stream": True})
