"""A task whose ``load`` waits to be told to go on: by the FIFO in ``LOADS`` that is named for its worker."""

import os
from pathlib import Path

from tests.tasks.hostile import Input, process

__all__ = ["Input", "load", "process"]


def load() -> None:
    Path(os.environ["LOADS"], os.environ["RUNPOD_POD_ID"]).read_text()
