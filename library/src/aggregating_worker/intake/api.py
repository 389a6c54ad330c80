"""The SDK's development server (``--rp_serve_api``): a job that cannot start fails there, too."""

from typing import Any

from runpod.serverless.modules import rp_fastapi

_encode = rp_fastapi.jsonable_encoder


def install() -> None:
    """Have each answer of the server pass ``failing``: to it, whatever a generator yields is output (1.12.0)."""
    rp_fastapi.jsonable_encoder = failing


def failing(answer: Any) -> Any:
    """Return what is sent for ``answer``, ``FAILED`` if its job has said nothing but why it cannot start."""
    match answer:
        case {"id": job_id, "output": [{"error": why}]} | {"id": job_id, "stream": [{"output": {"error": why}}]}:
            answer = {"id": job_id, "status": "FAILED", "error": why}
    return _encode(answer)
