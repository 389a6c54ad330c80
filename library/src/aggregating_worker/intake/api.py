"""Has a job that cannot start fail in the SDK's development server (``--rp_serve_api``), too."""

from typing import Any

from runpod.serverless.modules import rp_fastapi

_encode = rp_fastapi.jsonable_encoder


def install() -> None:
    """Pass each answer of the server through ``failing``: the server takes whatever is yielded for output (1.12.0)."""
    rp_fastapi.jsonable_encoder = failing


def failing(answer: Any) -> Any:
    """Encode ``answer``; a job that has yielded only ``{"error": …}`` is ``FAILED``."""
    match answer:
        case {"id": job_id, "output": [{"error": why}]} | {"id": job_id, "stream": [{"output": {"error": why}}]}:
            answer = {"id": job_id, "status": "FAILED", "error": why}
    return _encode(answer)
