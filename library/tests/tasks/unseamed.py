"""The hostile task under an SDK that lacks a seam: its ``get_jobs`` does not name what ``Loop`` overrides."""

from typing import Any

from runpod.serverless.modules import rp_scale

from tests.tasks.hostile import Input, load, process

__all__ = ["Input", "load", "process"]

_get_jobs = rp_scale.JobScaler.get_jobs


async def get_jobs(self: Any, session: Any) -> None:
    await _get_jobs(self, session)


rp_scale.JobScaler.get_jobs = get_jobs
