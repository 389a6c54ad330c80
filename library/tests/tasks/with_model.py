"""A task that looks for its model and its device as a starting point does, and says which it has found."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pydantic import BaseModel

from aggregating_worker import find_device, find_model, model

torch: Any = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False), version=SimpleNamespace(cuda="12.8"))
found: list[str] = []


class Input(BaseModel):
    items: list[str]


def load() -> None:
    model.HUB_CACHE = Path(os.environ["HUB_CACHE"])
    sys.modules["torch"] = torch
    found.extend((find_model("tiny/model"), find_device()))
    del sys.modules["torch"]  # the worker's own question, whether CUDA is in use, is not for this one


def process(item: str, job: Input) -> str:
    return found[item == "device"]
