"""The same task under an SDK that does not call its sender in the way that is known: it sends by itself."""

from typing import Any

from runpod.serverless.modules import rp_job

from tests.tasks.every_fault import Input, load, process

__all__ = ["Input", "load", "process"]

_handle_job = rp_job.handle_job


async def handle_job(session: Any, config: dict[str, Any], job: Any) -> Any:
    return await _handle_job(session, config, job)


rp_job.handle_job = handle_job
