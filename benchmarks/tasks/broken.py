"""A task that has lost its GPU in the worker that got a certain job, as a process has after a CUDA error."""

import os
from pathlib import Path

from pydantic import BaseModel


class Input(BaseModel):
    items: list[str]
    breaks: bool = False


def load() -> None:
    pass


def process(item: str, job: Input) -> str:
    mark = Path(os.environ["BROKEN"])
    if job.breaks:
        mark.write_text(os.environ["RUNPOD_POD_ID"])
    if mark.exists() and mark.read_text() == os.environ["RUNPOD_POD_ID"]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return item
