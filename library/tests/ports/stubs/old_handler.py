"""An older worker of somebody's own: words, one by one."""

from collections.abc import AsyncIterator
from typing import Any

import runpod


async def handler(job: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Yield each word of the text, or what is wrong with the request."""
    if "text" not in job["input"]:
        yield {"error": "There is no text"}
        return
    words = job["input"]["text"].split()
    for word in words:
        yield {"word": word}
    yield {"count": len(words)}


if __name__ == "__main__":
    runpod.serverless.start({"handler": handler, "return_aggregate_stream": True})
