"""What this project says of itself: its name, its image, and what its workers run on."""

import argparse
import json
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, PositiveInt

from aggregating_worker.deploy.options import cpu_config
from aggregating_worker.deploy.refusal import Refused


class Hub(BaseModel):
    """The ``config`` of ``.runpod/hub.json`` (docs, hub/publishing-guide), as far as an endpoint needs it."""

    runs_on: Literal["CPU", "GPU"] = Field(alias="runsOn")
    disk: PositiveInt = Field(alias="containerDiskInGb")
    cpu_flavor: str = Field("", alias="cpuFlavor")
    gpu_ids: str = Field("", alias="gpuIds")
    gpu_count: PositiveInt = Field(1, alias="gpuCount")


def project_name() -> str:
    """Return the project's name in ``pyproject.toml``."""
    try:
        name = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]
    except (OSError, ValueError, KeyError):
        raise Refused("pyproject.toml does not name the project: give --name.") from None
    return str(name)


def project_image() -> str:
    """Return the image that ``make image`` builds: it stands in the ``Makefile``, and nowhere else."""
    try:
        found = re.search(r"^IMAGE *[:?]?= *(\S+)", Path("Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    except (OSError, ValueError):
        found = None
    if not found:
        raise Refused("The Makefile does not say IMAGE := registry/name: give --image.")
    return found[1]


def project_needs() -> dict[str, Any]:
    """Return the disk and the CPU or GPU that ``.runpod/hub.json`` asks for, in the API's words; no file: nothing."""
    path = Path(".runpod", "hub.json")
    try:
        hub = Hub.model_validate(json.loads(path.read_text(encoding="utf-8"))["config"])
        if hub.runs_on == "CPU":
            return {"disk": hub.disk, "cpu": [cpu_config(hub.cpu_flavor)]}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, argparse.ArgumentTypeError):
        raise Refused(".runpod/hub.json does not say what the worker runs on: see Runpod's publishing guide.") from None
    ids = [each.strip() for each in hub.gpu_ids.split(",")]
    gpu: dict[str, Any] = {"pools": [each for each in ids if not each.startswith("-")], "count": hub.gpu_count}
    if excluded := [each[1:] for each in ids if each.startswith("-")]:
        gpu["excludedTypes"] = excluded
    return {"disk": hub.disk, "gpu": gpu}
