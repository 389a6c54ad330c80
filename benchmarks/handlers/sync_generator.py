"""Documented pattern: a generator function."""

import time
from collections.abc import Iterator
from typing import Any

import runpod


def handler(job: dict[str, Any]) -> Iterator[str]:
    for item in job["input"]["items"]:
        time.sleep(job["input"].get("seconds", 0))
        yield f"done: {item}".ljust(job["input"].get("size", 0))


runpod.serverless.start({"handler": handler, "return_aggregate_stream": True})
