"""The command line of ``aggregating-worker deploy``, and what the project in this folder says where that is silent."""

import argparse
import json
import os
import re
import subprocess
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import BaseModel, Field, PositiveInt

from aggregating_worker.deploy.hub import CUDA, HUB, CudaVersions
from aggregating_worker.deploy.rest import DeployFailed, without_key
from aggregating_worker.sentence import one_line

SCALERS = {"delay": ("QUEUE_DELAY", "queueDelay"), "requests": ("REQUEST_COUNT", "requestCount")}
"""The kinds of ``--scale-by`` (schema ``EndpointScaling``): their type, and the field of their number."""
FLASH_BOOT = {"off": "OFF", "on": "FLASHBOOT", "priority": "PRIORITY_FLASHBOOT"}


@dataclass(frozen=True)
class Arguments:
    """The arguments, each one that Runpod can take; None or empty where the command line says nothing."""

    name: str | None
    image: str | None
    cpu: list[dict[str, Any]]
    gpu: list[str]
    workers: dict[str, int]
    scaling: dict[str, Any] | None
    timeout: int | None
    registry: str | None
    min_cuda: str | None
    flash_boot: str | None
    data_centers: list[str] | None
    """Empty: any. So it is with the volumes: none."""
    volumes: list[str] | None
    env: dict[str, str]
    typed: frozenset[str]
    """The names in ``env`` whose values were typed. The other values are this machine's, and may be secrets."""
    dry_run: bool
    wait: int
    """Seconds to wait for a worker of the endpoint."""


class Hub(BaseModel):
    """The ``config`` of ``.runpod/hub.json`` (docs, hub/publishing-guide), as far as an endpoint needs it."""

    runs_on: Literal["CPU", "GPU"] = Field(alias="runsOn")
    disk: PositiveInt = Field(alias="containerDiskInGb")
    cpu_flavor: str = Field("", alias="cpuFlavor")
    gpu_ids: str = Field("", alias="gpuIds")
    gpu_count: PositiveInt = Field(1, alias="gpuCount")
    cuda: CudaVersions = Field([], alias="allowedCudaVersions")


def read_arguments(argv: Sequence[str]) -> Arguments:
    """Return the arguments in ``argv``; exit 2 with a sentence about one that Runpod could not take."""
    parser = _parser()
    given = parser.parse_args(argv)
    if given.cpu and given.min_cuda_version:
        parser.error("argument --min-cuda-version: not allowed with argument --cpu")
    workers = {"min": given.workers_min, "max": given.workers_max, "idleTimeout": given.idle_timeout}
    env = {name: (value, typed) for name, value, typed in given.env}
    return Arguments(
        name=given.name,
        image=given.image,
        cpu=[flavor for number, flavor in enumerate(given.cpu) if flavor not in given.cpu[:number]],
        gpu=list(dict.fromkeys(given.gpu)),
        workers={name: limit for name, limit in workers.items() if limit is not None},
        scaling=given.scale_by,
        timeout=given.timeout,
        registry=given.registry,
        min_cuda=given.min_cuda_version,
        flash_boot=given.flash_boot and FLASH_BOOT[given.flash_boot],
        data_centers=given.data_centers,
        volumes=given.network_volumes,
        env={name: value for name, (value, _) in env.items()},
        typed=frozenset(name for name, (_, typed) in env.items() if typed),
        dry_run=given.dry_run,
        wait=given.wait,
    )


def project_name() -> str:
    """Return the project's name in ``pyproject.toml``. Raises ``DeployFailed``."""
    try:
        name = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]
    except (OSError, ValueError, KeyError):
        raise DeployFailed("pyproject.toml does not name the project", "give --name") from None
    return str(name)


def project_image() -> str:
    """Return the image that ``make image`` builds, with its tag, as the Makefile says. Raises ``DeployFailed``."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--no-print-directory", "--silent", "image-name"]
    try:
        asked = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
        name, said = asked.stdout.strip(), asked.stderr + asked.stdout
    except OSError as error:
        name, said = "", f"make: {error.strerror}"
    if not re.fullmatch(r"[!-~]+:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", name):
        why = f"`make image-name` does not say registry/name:tag ({one_line(said) or 'nothing'})"
        raise DeployFailed(why, "give --image")
    return name


def project_needs() -> dict[str, Any]:
    """Return the disk and the CPU or GPU in ``.runpod/hub.json``, as the API spells them; without the file, nothing.

    Raises ``DeployFailed``.
    """
    try:
        text = HUB.read_text(encoding="utf-8")
        hub = Hub.model_validate(json.loads(text)["config"])
        if hub.runs_on == "CPU":
            return {"disk": hub.disk, "cpu": [cpu_config(hub.cpu_flavor)]}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError, argparse.ArgumentTypeError):
        why = ".runpod/hub.json does not say what the worker runs on"
        raise DeployFailed(why, "see Runpod's publishing guide for the Hub") from None
    ids = list(dict.fromkeys(each.strip() for each in hub.gpu_ids.split(",") if each.strip()))
    gpu: dict[str, Any] = {"pools": [each for each in ids if not each.startswith("-")], "count": hub.gpu_count}
    if not gpu["pools"]:
        raise DeployFailed(".runpod/hub.json names no GPU to run on", 'give its gpuIds, such as "ADA_24"')
    if excluded := [each[1:] for each in ids if each.startswith("-")]:
        gpu["excludedTypes"] = excluded
    if hub.cuda:
        gpu["allowedCudaVersions"] = hub.cuda
    return {"disk": hub.disk, "gpu": gpu}


def cpu_config(flavor: str) -> dict[str, Any]:
    """Return ``flavor`` as the API spells it (schema ``CreateCpuConfig``). Raises ``argparse.ArgumentTypeError``.

    ``cpu5c`` has 2 vCPUs; an instance ID of the documentation, such as ``cpu5c-4-8``, says how many. The memory follows
    from the flavor.
    """
    match = re.fullmatch(r"([a-z0-9]+)(?:-([0-9]{1,3})(?:-[0-9]+)?)?", flavor)
    vcpus = int(match[2] or 2) if match else 0
    if not match or vcpus < 2 or vcpus.bit_count() != 1:
        raise argparse.ArgumentTypeError(f"{flavor!r} is not a flavor such as cpu5c, or cpu5c-4-8 with 2, 4, 8 … vCPUs")
    return {"id": match[1], "vcpuCount": vcpus}


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="aggregating-worker deploy",
        description="Create a Runpod endpoint, or update the one that has this name. An update changes the image and "
        "what else the command line names; the rest stays as it is.",
    )
    add = parser.add_argument
    add("--name", type=_name, help="the endpoint's name (default: the project's)")
    add("--image", type=_word, help="the image that you pushed (default: what `make push` pushes)")
    compute = parser.add_mutually_exclusive_group().add_argument
    several: dict[str, Any] = {"nargs": "+", "default": []}
    hub = "(default: what .runpod/hub.json says)"
    compute("--cpu", type=cpu_config, **several, metavar="FLAVOR", help=f"cpu5c (2 vCPUs), cpu5c-4-8 (4) … {hub}")
    compute("--gpu", type=_word, **several, metavar="POOL", help=f"ADA_24 … {hub}")
    add("--workers-min", type=_number(0), metavar="N", help="workers that are always on (default: 0)")
    add("--workers-max", type=_number(0), metavar="N", help="workers at most (default: 3)")
    add("--idle-timeout", type=_number(1, 3_600), metavar="SECONDS", help="until an idle worker stops (default: 10)")
    scale = "add a worker when a job has waited so long, or for each so many jobs (default: delay=4)"
    add("--scale-by", type=_scaling, metavar="delay=SECONDS|requests=N", help=scale)
    add("--timeout", type=_number(5, 604_800), metavar="SECONDS", help="that a job may take (default: 600)")
    add("--registry", type=_word, metavar="ID", help="your registry credential on Runpod, for a private image")
    cuda = "the least that a GPU's driver must have, instead of the list in hub.json"
    add("--min-cuda-version", type=_cuda, metavar="X.Y", help=cuda)
    add("--flash-boot", choices=FLASH_BOOT, help="start from the state that a stopped worker has left (default: on)")
    ids: dict[str, Any] = {"type": _word, "nargs": "*", "metavar": "ID"}
    add("--data-centers", **ids, help="where workers run; without ID: anywhere (default)")
    add("--network-volumes", **ids, help="at /runpod-volume, one a data center; without ID: none (default)")
    variable = "an environment variable for the workers; repeat it for more; without VALUE, this machine's value"
    add("--env", type=_variable, action="append", default=[], metavar="NAME[=VALUE]", help=variable)
    waiting = "for a worker to be ready, before saying why none is (default: 20; 0: do not look)"
    add("--wait", type=_number(0, 3_600), default=20, metavar="SECONDS", help=waiting)
    add("--dry-run", action="store_true", help="print the request and change nothing; needs no key")
    return parser


class _Parser(argparse.ArgumentParser):
    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        super().exit(status, without_key(message or ""))


def _name(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} is not a name of one line")
    return text


def _word(text: str) -> str:
    if not re.fullmatch(r"[!-~]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not one word")
    return text


def _number(least: int, most: int | None = None) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= (most or int(text)):
            limits = f"from {least} to {most}" if most else f"of {least} or more"
            raise argparse.ArgumentTypeError(f"{text!r} is not a number {limits}")
        return int(text)

    return number


def _scaling(text: str) -> dict[str, Any]:
    """Return ``text`` as the API spells it; without a number it is 4, which is Runpod's default."""
    kind, _, number = text.partition("=")
    digits = r"[0-9]{1,6}(\.[0-9]{1,3})?" if kind == "delay" else r"[0-9]{1,6}"
    if kind not in SCALERS or not re.fullmatch(digits, number or "4") or float(number or 4) < 0.5:
        raise argparse.ArgumentTypeError(f"{text!r} is neither delay=SECONDS, of 0.5 or more, nor requests=N")
    name, field = SCALERS[kind]
    value = float(number or 4)
    return {"type": name, field: int(value) if value.is_integer() else value}


def _cuda(text: str) -> str:
    if not re.fullmatch(CUDA, text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a version such as 12.8")
    return text


def _variable(text: str) -> tuple[str, str, bool]:
    """Return a variable's name and value, and whether the value was typed. No message shows the value."""
    name, typed, value = text.partition("=")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise argparse.ArgumentTypeError("give NAME=VALUE, or the NAME of a variable that is set here")
    if not typed and name not in os.environ:
        raise argparse.ArgumentTypeError(f"{name} is not set here: give {name}=VALUE")
    value = value if typed else os.environ[name]
    try:
        value.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"the value of {name} is not UTF-8") from None
    return name, value, bool(typed)
