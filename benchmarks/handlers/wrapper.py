"""Documented pattern: a wrapper that returns a list to the local test and a generator to production."""

from collections.abc import Iterator
from typing import Any

import runpod


def handler(job: dict[str, Any]) -> Iterator[str]:
    for item in job["input"]["items"]:
        yield f"done: {item}"


def wrapper(job: dict[str, Any]) -> Iterator[str] | list[str]:
    results = handler(job)
    return list(results) if job.get("id") == "local_test" else results


runpod.serverless.start({"handler": wrapper, "return_aggregate_stream": True})
