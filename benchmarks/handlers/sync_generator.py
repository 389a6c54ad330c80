"""Documented pattern: a generator function."""

from collections.abc import Iterator
from typing import Any

import runpod


def handler(job: dict[str, Any]) -> Iterator[str]:
    for item in job["input"]["items"]:
        yield f"done: {item}"


runpod.serverless.start({"handler": handler, "return_aggregate_stream": True})
