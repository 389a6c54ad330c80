"""Documented pattern: an async generator function."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import runpod


async def handler(job: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    for item in job["input"]["items"]:
        began = time.monotonic()
        await asyncio.sleep(job["input"].get("seconds", 0))
        yield {"began": began, "text": item}


runpod.serverless.start({"handler": handler, "return_aggregate_stream": True})
