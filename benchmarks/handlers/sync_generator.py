"""Documented pattern: a generator function."""

import time
from collections.abc import Iterator
from typing import Any

import runpod


def handler(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for item in job["input"]["items"]:
        began = time.monotonic()
        time.sleep(job["input"].get("seconds", 0))
        yield {"began": began, "text": item.ljust(job["input"].get("size", 0))}


runpod.serverless.start({"handler": handler, "return_aggregate_stream": True})
