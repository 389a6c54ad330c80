"""The built image: what is in it, and how soon its worker takes a job.

``make image`` runs it on a freshly baked worker and writes the result into docs/image.md. Needs Docker.
"""

import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.progress import track

import readme
from aggregating_worker.local import Image, LocalEndpoint
from chart import spread
from serve import first_job, machine

PAGE = Path(__file__).parents[1] / "docs" / "image.md"
ROUNDS = 15
BASE = "python:3.13-slim"
PACKAGES = "cd /venv/lib/python3*/site-packages && du --summarize --block-size=MB * | sort --numeric-sort --reverse"
SDK = "pip install --quiet --root-user-action ignore --target /sdk runpod=={} && du --summarize --block-size=MB /sdk"


def docker(*arguments: str) -> str:
    """Return what a docker command says."""
    return subprocess.check_output(["docker", *arguments], text=True)  # noqa: S607  # of whoever runs this


def megabytes(what: str, *path: str) -> float:
    """Return the size of an image or, if ``path`` is given, of that in it."""
    if path:
        return int(docker("run", "--rm", what, "du", "--summarize", "--bytes", *path).split()[0]) / 1e6
    return int(docker("image", "inspect", "--format", "{{.Size}}", what)) / 1e6


def contents(image: str) -> str:
    """Return what is in the image, and what the SDK costs by itself, in Markdown."""
    packages = [line.split("\t") for line in docker("run", "--rm", image, "sh", "-c", PACKAGES).splitlines()]
    largest = ", ".join(f"{name} {size.removesuffix('MB')}" for size, name in packages[:6])
    alone = docker("run", "--rm", "--network", "host", BASE, "sh", "-c", SDK.format(version("runpod")))
    rows = [
        "| in the image (`sync`) | MB |",
        "|---|---|",
        f"| its base, `{BASE}` | {megabytes(BASE):.0f} |",
        f"| `/venv`: the locked packages, compiled (largest: {largest}) | {megabytes(image, '/venv'):.0f} |",
        f"| `/app`: `handler.py`, `task.py`, `test_input.json` | {megabytes(image, '/app'):.1f} |",
        f"| all of it | {megabytes(image):.0f} |",
        "",
        f"`pip install runpod=={version('runpod')}` by itself takes {alone.split('MB')[0]} MB.",
    ]
    return "\n".join(rows) + "\n"


def starts(worker: Path, image: str) -> str:
    """Return how long the worker takes to its first job, in a container and out of it, in Markdown."""
    outside, nothing, inside = [], [], []
    with tempfile.TemporaryFile() as log:
        for _ in track(range(ROUNDS), "start to the first job taken", console=Console(stderr=True)):
            python = [str(worker / ".venv" / "bin" / "python"), "-u", "handler.py"]
            outside.append(first_job(LocalEndpoint(python, cwd=worker, log=log)))
            began = time.monotonic()
            docker("run", "--rm", "--network", "host", "--entrypoint", "true", image)
            nothing.append(time.monotonic() - began)
            inside.append(first_job(LocalEndpoint(Image(image), log=log)))
    ratios = [run / (process + engine) for run, process, engine in zip(inside, outside, nothing, strict=True)]
    rows = [
        "| start to the first job taken | seconds: median (range) |",
        "|---|---|",
        f"| the worker as a process | {spread(outside)} |",
        f"| `docker run IMAGE true` | {spread(nothing)} |",
        f"| the worker in its container | {spread(inside)} |",
        "",
        f"The container takes {spread(ratios)} times as long as the other two together.",
        f"Measured on {machine()}.",
    ]
    return "\n".join(rows) + "\n"


def main() -> None:
    """Build the image, measure it, write what came out."""
    worker = Path(sys.argv[1]).absolute()
    image = "localhost/measured"
    if subprocess.run(["make", "image", f"IMAGE={image}", "TAG=latest"], cwd=worker, check=False).returncode:  # noqa: S607
        sys.exit("The image was not built: the lines above say why.")
    try:
        readme.write("image", f"{contents(image)}\n{starts(worker, image)}", page=PAGE)
    finally:
        docker("rmi", image)


if __name__ == "__main__":
    main()
