"""What is sent: the body that creates an endpoint, and the one that changes it."""

import re
from collections.abc import Mapping
from typing import Any

from aggregating_worker.deploy.options import Options
from aggregating_worker.deploy.project import project_needs
from aggregating_worker.deploy.refusal import Refused
from aggregating_worker.deploy.rest import Endpoint

WORKERS = {"min": 0, "max": 3, "idleTimeout": 10}
SCALING = {"type": "QUEUE_DELAY", "queueDelay": 4}
TIMEOUT = 600
"""Seconds that a job may take, as on an endpoint made in the console (docs, endpoint-configurations)."""
MASKED = re.compile(r"[*•●]{3}|^[xX.…]{3,}$|^redacted$|^[\[<(][a-z]+[\])>]$", re.IGNORECASE)
"""A value that an answer shows in place of a variable's own."""


def creation(options: Options, image: str, name: str) -> dict[str, Any]:
    """Return the body of a new endpoint: what is asked for, and for the rest what the project and this file say."""
    needs = project_needs()
    if options.cpu or options.gpu:
        gpu = {"pools": options.gpu, "count": needs.get("gpu", {}).get("count", 1)}
        disk = {"disk": needs["disk"]} if needs else {}
        needs = disk | ({"cpu": options.cpu} if options.cpu else {"gpu": gpu})
    if not needs:
        raise Refused("Say what the worker runs on: --cpu, such as cpu5c, or --gpu, such as ADA_24.")
    defaults = {"workers": WORKERS, "scaling": SCALING, "timeout": TIMEOUT * 1000}
    return {"name": name, "type": "QUEUE", "image": image, **needs, **defaults, **_settings(options, WORKERS, {})}


def change(options: Options, image: str, existing: Endpoint) -> dict[str, Any]:
    """Return the body that updates an endpoint: the image and what is asked for. The rest stays as it is."""
    body: dict[str, Any] = {"image": image, **_settings(options, existing.workers, existing.env or {})}
    if options.cpu:
        body["cpu"] = options.cpu
    if options.gpu:
        body["gpu"] = {"pools": options.gpu}
    return body


def _settings(options: Options, workers: Mapping[str, int], env: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings that are asked for, with what there is already of ``workers`` and ``env``.

    The API replaces ``env`` as a whole; for ``workers``, its contract does not say.
    """
    settings: dict[str, Any] = {}
    if options.workers:
        limits = {name: limit for name, limit in workers.items() if name in WORKERS} | options.workers
        least, most = limits.get("min", 0), limits.get("max", 0)
        if least > most:
            raise Refused(
                f"At least {least} and at most {most} workers cannot be: give --workers-min and --workers-max."
            )
        settings["workers"] = limits
    if options.env:
        masked = ", ".join(each for each, value in env.items() if each not in options.env and MASKED.search(value))
        if masked:
            raise Refused(
                f"Runpod does not show the values of {masked}, and an update replaces all: give them as well."
            )
        settings["env"] = {**env, **options.env}
    if options.timeout:
        settings["timeout"] = options.timeout * 1000
    if options.registry:
        settings["registry"] = options.registry
    return settings
