"""The hostile task under an SDK that has lost a seam: its loop asks for room by another name."""

from typing import Any

from runpod.serverless.modules import rp_scale

from tests.tasks.hostile import Input, load, process

__all__ = ["Input", "load", "process"]

_get_jobs = rp_scale.JobScaler.get_jobs


async def get_jobs(self: Any, session: Any) -> None:
    await _get_jobs(self, session)


rp_scale.JobScaler.get_jobs = get_jobs
