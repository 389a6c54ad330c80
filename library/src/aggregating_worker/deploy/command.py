"""``aggregating-worker deploy``: create an endpoint, or update the one that has the name."""

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from rich.console import Console
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from aggregating_worker.deploy.arguments import Arguments, project_image, project_name, project_needs, read_arguments
from aggregating_worker.deploy.coming_up import why_not_up
from aggregating_worker.deploy.rest import PATH, DeployFailed, Endpoint, Rest, api_key, without_key
from aggregating_worker.sentence import KEYS, one_line

WORKERS = {"min": 0, "max": 3, "idleTimeout": 10}
SCALING = {"type": "QUEUE_DELAY", "queueDelay": 4}
TIMEOUT = 600
"""Seconds that a job may take, as on an endpoint made in the console (docs, endpoint-configurations)."""
MASKED = re.compile(r"[*•●]{3}|^[xX.…]{3,}$|^redacted$|^[\[<(][a-z]+[\])>]$", re.IGNORECASE)
"""How an answer could show a variable's value without giving it away. The API's contract says nothing of it."""


def main(argv: Sequence[str]) -> None:
    """Create the endpoint or update it, and print its id and the command that calls it; exit 1 with a sentence if not.

    If none of its workers comes up, another sentence says why. What was deployed stays so, and the status is 0.
    Two first deployments of a name at the same moment create two endpoints: the API takes a name twice. The next one
    says so.
    """
    arguments = read_arguments(argv[1:])
    set_on_retry_hooks([_tell])
    try:
        with Console(stderr=True).status("Asking Runpod"):
            said, endpoint = deploy(arguments)
    except DeployFailed as failed:
        sys.exit(without_key(str(failed)))
    except KeyboardInterrupt:
        sys.exit("Interrupted. Run the command again: it looks for the name before it creates anything.")
    print(without_key(said), flush=True)
    if endpoint and arguments.wait:
        with suppress(KeyboardInterrupt):
            with Console(stderr=True).status("Waiting for a worker; Ctrl-C leaves what is deployed as it is"):
                why = why_not_up(endpoint, arguments.wait)
            if why:
                print(without_key(why), file=sys.stderr)


def deploy(arguments: Arguments) -> tuple[str, Endpoint | None]:
    """Deploy; return what to print, and the endpoint. Raises ``DeployFailed``.

    A dry run finds out what the request would be, and has no endpoint.
    """
    name, image = arguments.name or project_name(), arguments.image or project_image()
    key = api_key()
    if not key and not arguments.dry_run:
        raise DeployFailed("RUNPOD_API_KEY is not set", f"make a key at {KEYS}, under API Keys, and export it")
    if not key:
        print("RUNPOD_API_KEY is not set: this is the request if no endpoint has the name yet.", file=sys.stderr)
    rest = Rest(key, [value for variable, value in arguments.env.items() if variable not in arguments.typed])
    existing = rest.named(name) if key else None
    if existing and existing.type != "QUEUE":
        raise DeployFailed(f"The endpoint {name} has no queue, which this worker needs", "choose another --name")
    body = change(arguments, image, existing) if existing else creation(arguments, image, name)
    if arguments.dry_run:
        request = f"PATCH {rest.url}{existing.path}" if existing else f"POST {rest.url}{PATH}"
        return f"{request}\n{json.dumps(_shown(body, arguments), indent=2)}", None
    endpoint = rest.update(existing, body) if existing else rest.create(body)
    endpoint_id = one_line(endpoint.id)
    said = (
        f"{'Updated' if existing else 'Created'}    {one_line(f'{name}: {endpoint.image or image}')}\n"
        f"Endpoint   {endpoint_id}\n"
        f"Call it    RUNPOD_ENDPOINT_ID={shlex.quote(endpoint_id)} aggregating-worker runsync test_input.json"
    )
    return said, endpoint


def creation(arguments: Arguments, image: str, name: str) -> dict[str, Any]:
    """Return the body that creates an endpoint: the arguments, else what the project says, else the defaults here."""
    needs = project_needs()
    if arguments.cpu or arguments.gpu:
        gpu = {"pools": arguments.gpu, "count": needs.get("gpu", {}).get("count", 1)}
        disk = {"disk": needs["disk"]} if needs else {}
        needs = disk | ({"cpu": arguments.cpu} if arguments.cpu else {"gpu": gpu})
    if not needs:
        raise DeployFailed("Say what the worker runs on", "--cpu, such as cpu5c, or --gpu, such as ADA_24")
    defaults = {"workers": WORKERS, "scaling": SCALING, "timeout": TIMEOUT * 1000}
    return {"name": name, "type": "QUEUE", "image": image, **needs, **defaults, **_settings(arguments, WORKERS, {})}


def change(arguments: Arguments, image: str, existing: Endpoint) -> dict[str, Any]:
    """Return the body that updates an endpoint: the image and the arguments. What is not in it stays as it is."""
    body: dict[str, Any] = {"image": image, **_settings(arguments, existing.workers, existing.env or {})}
    if arguments.cpu:
        body["cpu"] = arguments.cpu
    if arguments.gpu:
        body["gpu"] = {"pools": arguments.gpu}
    return body


def _settings(arguments: Arguments, workers: Mapping[str, int], env: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings among the arguments, added to the ``workers`` and the ``env`` that are there already.

    The API replaces ``env`` as a whole; for ``workers``, its contract does not say.
    """
    settings: dict[str, Any] = {}
    if arguments.workers:
        limits = {name: limit for name, limit in workers.items() if name in WORKERS} | arguments.workers
        least, most = limits.get("min", 0), limits.get("max", 0)
        if least > most:
            why = f"The minimum of {least} workers is above the maximum of {most}"
            raise DeployFailed(why, "give --workers-min and --workers-max")
        settings["workers"] = limits
    if arguments.env:
        if masked := [each for each, value in env.items() if each not in arguments.env and MASKED.search(value)]:
            why = f"An update replaces all variables, and Runpod hides the value of {', '.join(masked)}"
            raise DeployFailed(why, "give it with --env, too")
        settings["env"] = {**env, **arguments.env}
    if arguments.timeout:
        settings["timeout"] = arguments.timeout * 1000
    if arguments.registry:
        settings["registry"] = arguments.registry
    return settings


def _shown(body: dict[str, Any], arguments: Arguments) -> dict[str, Any]:
    """Return ``body`` with *** for the values that nobody typed: this machine's, and the endpoint's."""
    if "env" not in body:
        return body
    return body | {"env": {name: value if name in arguments.typed else "***" for name, value in body["env"].items()}}


def _tell(details: RetryDetails) -> None:
    if isinstance(failed := details.caused_by, DeployFailed):
        print(without_key(f"{failed.why}: trying again in {details.wait_for:.0f} s."), file=sys.stderr)
