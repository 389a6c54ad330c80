"""``aggregating-worker deploy``: create an endpoint, or update the one that has the name."""

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from rich.console import Console
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from aggregating_worker.deploy.arguments import Arguments, project_image, project_name, project_needs, read_arguments
from aggregating_worker.deploy.coming_up import why_not_up
from aggregating_worker.deploy.rest import PATH, DeployFailed, Endpoint, Rest, api_key, without_key
from aggregating_worker.sentence import KEYS, one_line

WORKERS = {"min": 0, "max": 3, "idleTimeout": 10}
"""The API's own defaults (schema ``CreateEndpointRequest``)."""
DEFAULTS = {"scaling": {"type": "QUEUE_DELAY", "queueDelay": 4}, "timeout": 600_000, "flashboot": "FLASHBOOT"}
"""As on an endpoint made in the console (docs, serverless/endpoints/endpoint-configurations, read in August 2026)."""
CONSOLE = "https://console.runpod.io/serverless/user/endpoint"
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
                pushed = "If the image is not in its registry yet, push it: make image push."
                print(without_key(f"{why}\n{pushed}"), file=sys.stderr)


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
    said = [
        f"{'Updated' if existing else 'Created'}    {one_line(f'{name}: {endpoint.image or image}')}",
        f"Endpoint   {endpoint_id}",
        f"Call it    RUNPOD_ENDPOINT_ID={shlex.quote(endpoint_id)} aggregating-worker runsync test_input.json",
        f"Watch it   {CONSOLE}/{quote(endpoint_id, safe='')}",
    ]
    if existing and existing.image and existing.image != image:
        back = shlex.join(["aggregating-worker", "deploy", "--name", name, "--image", existing.image])
        said.append(f"Go back    {one_line(back)}")
    return "\n".join(said), endpoint


def creation(arguments: Arguments, image: str, name: str) -> dict[str, Any]:
    """Return the body that creates an endpoint: the arguments, else what the project says, else the defaults here."""
    needs = project_needs()
    if arguments.cpu:
        needs.pop("gpu", None)
        needs["cpu"] = arguments.cpu
    elif arguments.gpu:
        needs.pop("cpu", None)
        needs["gpu"] = {"count": 1} | needs.get("gpu", {}) | {"pools": arguments.gpu}
        needs["gpu"].pop("excludedTypes", None)
    if not needs.keys() & {"cpu", "gpu"}:
        raise DeployFailed("Say what the worker runs on", "--cpu, such as cpu5c, or --gpu, such as ADA_24")
    if arguments.min_cuda:
        if "cpu" in needs:
            raise DeployFailed("A CPU has no CUDA", "leave --min-cuda-version out, or give --gpu")
        needs["gpu"].pop("allowedCudaVersions", None)
        needs["gpu"]["minCudaVersion"] = arguments.min_cuda
    settings = {**DEFAULTS, **_settings(arguments, {})}
    settings["workers"] = _workers(arguments, WORKERS, settings["scaling"])
    return {"name": name, "type": "QUEUE", "image": image, **needs, **settings}


def change(arguments: Arguments, image: str, existing: Endpoint) -> dict[str, Any]:
    """Return the body that updates an endpoint: the image and the arguments. What is not in it stays as it is."""
    body: dict[str, Any] = {"image": image, **_settings(arguments, existing.env or {})}
    if arguments.workers:
        body["workers"] = _workers(arguments, existing.workers, arguments.scaling or existing.scaling)
    if arguments.cpu:
        body["cpu"] = arguments.cpu
    gpu: dict[str, Any] = {"pools": arguments.gpu} if arguments.gpu else {}
    if arguments.min_cuda:  # a list that is there already would go on to hold, and the two exclude each other
        gpu |= {"minCudaVersion": arguments.min_cuda, "allowedCudaVersions": []}
    return body | ({"gpu": gpu} if gpu else {})


def _workers(arguments: Arguments, workers: Mapping[str, int], scaling: Mapping[str, Any]) -> dict[str, int]:
    """Return the limits among the arguments, added to those there are: whether the API replaces them is not said."""
    limits = {name: limit for name, limit in workers.items() if name in WORKERS} | arguments.workers
    least, most = limits.get("min", 0), limits.get("max", 0)
    if least > most:
        why = f"The minimum of {least} workers is above the maximum of {most}"
        raise DeployFailed(why, "give --workers-min and --workers-max")
    if scaling.get("type") == "REQUEST_COUNT":  # which has no idle timeout: the API refuses one
        if "idleTimeout" in arguments.workers:
            why = "An endpoint that scales by requests has no idle timeout"
            raise DeployFailed(why, "leave --idle-timeout out, or give --scale-by delay")
        limits.pop("idleTimeout", None)
    return limits


def _settings(arguments: Arguments, env: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings among the arguments; to the variables, ``env`` is added, since the API replaces them all."""
    given: dict[str, Any] = {
        "scaling": arguments.scaling,
        "timeout": arguments.timeout and arguments.timeout * 1000,
        "flashboot": arguments.flash_boot,
        "registry": arguments.registry,
        "dataCenterIds": arguments.data_centers,
        "networkVolumes": arguments.volumes,
    }
    if arguments.env:
        if masked := [each for each, value in env.items() if each not in arguments.env and MASKED.search(value)]:
            why = f"An update replaces all variables, and Runpod hides the value of {', '.join(masked)}"
            raise DeployFailed(why, "give it with --env, too")
        given["env"] = {**env, **arguments.env}
    return {name: value for name, value in given.items() if value is not None}


def _shown(body: dict[str, Any], arguments: Arguments) -> dict[str, Any]:
    """Return ``body`` with *** for the values that nobody typed: this machine's, and the endpoint's."""
    if "env" not in body:
        return body
    return body | {"env": {name: value if name in arguments.typed else "***" for name, value in body["env"].items()}}


def _tell(details: RetryDetails) -> None:
    if isinstance(failed := details.caused_by, DeployFailed):
        print(without_key(f"{failed.why}: trying again in {details.wait_for:.0f} s."), file=sys.stderr)
