"""Pictures as a handler sends them without this worker: each encoded, uploaded with the SDK's own upload, yielded."""

import base64
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import runpod
from runpod.serverless.utils.rp_upload import upload_image

SIZE = 500_000


def handler(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for item in job["input"]["items"]:
        began = time.monotonic()
        data = base64.b64encode(b"\x89PNG\r\n\x1a\n" + item.encode().ljust(SIZE))
        with tempfile.NamedTemporaryFile(suffix=".png") as file:  # what the upload takes is a path
            Path(file.name).write_bytes(base64.b64decode(data))
            yield {"began": began, "url": upload_image(job["id"], file.name)}


runpod.serverless.start({"handler": handler, "return_aggregate_stream": True})
