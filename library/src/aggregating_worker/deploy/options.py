"""What ``aggregating-worker deploy`` may be asked for on the command line: each value within what the API takes."""

import argparse
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from aggregating_worker.deploy.refusal import without_key


@dataclass(frozen=True)
class Options:
    """What was asked for; None, or nothing in a collection, where the command line says nothing."""

    name: str | None
    image: str | None
    cpu: list[dict[str, Any]]
    gpu: list[str]
    workers: dict[str, int]
    timeout: int | None
    registry: str | None
    env: dict[str, str]
    typed: frozenset[str]
    """The names in ``env`` whose values were typed. The others are from the environment, and may be secrets."""
    dry_run: bool


def read_options(argv: Sequence[str] | None) -> Options:
    """Read ``argv`` (None: this process's); exit 2 with a sentence about what it cannot be."""
    asked = _parser().parse_args(argv)
    workers = {"min": asked.workers_min, "max": asked.workers_max, "idleTimeout": asked.idle_timeout}
    env = {name: (value, typed) for name, value, typed in asked.env}
    return Options(
        name=asked.name,
        image=asked.image,
        cpu=[flavor for number, flavor in enumerate(asked.cpu) if flavor not in asked.cpu[:number]],
        gpu=list(dict.fromkeys(asked.gpu)),
        workers={name: limit for name, limit in workers.items() if limit is not None},
        timeout=asked.timeout,
        registry=asked.registry,
        env={name: value for name, (value, _) in env.items()},
        typed=frozenset(name for name, (_, typed) in env.items() if typed),
        dry_run=asked.dry_run,
    )


def cpu_config(flavor: str) -> dict[str, Any]:
    """Return ``flavor`` as the API spells it (schema ``CreateCpuConfig``).

    ``cpu5c`` has 2 vCPUs; an instance ID as in the documentation, such as ``cpu5c-4-8``, has its own number. The memory
    follows from the flavor.
    """
    match = re.fullmatch(r"([a-z0-9]+)(?:-([0-9]{1,3})(?:-[0-9]+)?)?", flavor)
    vcpus = int(match[2] or 2) if match else 0
    if not match or vcpus < 2 or vcpus.bit_count() != 1:
        raise argparse.ArgumentTypeError(f"{flavor!r} is not a flavor such as cpu5c, or cpu5c-4-8 with 2, 4, 8 … vCPUs")
    return {"id": match[1], "vcpuCount": vcpus}


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="aggregating-worker deploy",
        description="Create a Runpod endpoint, or update the one that has the name. An update changes the image and "
        "what else you name; the rest stays as it is.",
    )
    add = parser.add_argument
    add("--name", type=_text, help="the endpoint's name (default: the project's)")
    add("--image", type=_word, help="the image, as you pushed it (default: IMAGE in the Makefile)")
    compute = parser.add_mutually_exclusive_group()
    compute.add_argument(
        "--cpu",
        type=cpu_config,
        nargs="+",
        default=[],
        metavar="FLAVOR",
        help="cpu5c (2 vCPUs), cpu5c-4-8 (4) … (default: what .runpod/hub.json says)",
    )
    compute.add_argument(
        "--gpu",
        type=_word,
        nargs="+",
        default=[],
        metavar="POOL",
        help="ADA_24 … (default: what .runpod/hub.json says)",
    )
    add("--workers-min", type=_number(0), metavar="N", help="workers that are always on (default: 0)")
    add("--workers-max", type=_number(0), metavar="N", help="workers at most (default: 3)")
    add("--idle-timeout", type=_number(1, 3_600), metavar="SECONDS", help="of a worker without a job (default: 10)")
    add("--timeout", type=_number(5, 604_800), metavar="SECONDS", help="that a job may take (default: 600)")
    add("--registry", type=_word, metavar="ID", help="of your registry credential on Runpod, for a private image")
    add(
        "--env",
        type=_variable,
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="a variable of the workers, again for each; without VALUE, the one that it has here",
    )
    add("--dry-run", action="store_true", help="print the request and change nothing; needs no key")
    return parser


class _Parser(argparse.ArgumentParser):
    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        super().exit(status, without_key(message or ""))


def _text(text: str) -> str:
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
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a number " + (f"from {least} to {most}" if most else f"of {least} or more")
            )
        return int(text)

    return number


def _variable(text: str) -> tuple[str, str, bool]:
    """Return a variable's name and value, and whether the value was typed. No message shows it."""
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
