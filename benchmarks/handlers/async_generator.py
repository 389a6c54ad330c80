"""Documented pattern: an async generator function."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import runpod


async def handler(job: dict[str, Any]) -> AsyncIterator[str]:
    for item in job["input"]["items"]:
        await asyncio.sleep(job["input"].get("seconds", 0))
        yield f"done: {item}"


runpod.serverless.start({"handler": handler, "return_aggregate_stream": True})
