"""``python -m endpoint.deploy``: put the image on a Runpod endpoint. The same name twice is one endpoint, updated."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from endpoint.deploy_options import Options, read_options
from endpoint.project import project_image, project_name, project_needs
from endpoint.rest import KEYS, PATH, Endpoint, Refused, Rest, api_key, one_line, reason, without_key

WORKERS = {"min": 0, "max": 3, "idleTimeout": 10}
SCALING = {"type": "QUEUE_DELAY", "queueDelay": 4}
TIMEOUT = 600
"""Seconds that a job may take, as on an endpoint made in the console (docs, endpoint-configurations)."""


def main(argv: Sequence[str] | None = None) -> None:
    """Create the endpoint or update it; print its id and the command that calls it. An error is a sentence and exit 1.

    Two of these at the same moment, with a new name, make two endpoints: the API takes any name. The next one refuses
    to choose, and names both.
    """
    options = read_options(argv)
    set_on_retry_hooks([_tell])
    try:
        with Console(stderr=True).status("Asking Runpod"):
            said = deploy(options)
    except Refused as refusal:
        sys.exit(without_key(str(refusal)))
    except KeyboardInterrupt:
        sys.exit("Interrupted: run the command again, it looks the name up before it creates anything.")
    print(without_key(said))


def deploy(options: Options) -> str:
    """Do what ``options`` say, or find out what that would be; return what there is to tell. Raises ``Refused``."""
    name, image = options.name or project_name(), options.image or project_image()
    key = api_key()
    if not key and not options.dry_run:
        raise Refused(f"RUNPOD_API_KEY is not set: make a key at {KEYS}, and export it.")
    if not key:
        print("Without RUNPOD_API_KEY: the request for a name that is not in use yet.", file=sys.stderr)
    with Rest(key) as rest:
        existing = rest.named(name) if key else None
        if existing and existing.type != "QUEUE":
            raise Refused(f"{name} is an endpoint without a queue, which this worker needs: choose another --name.")
        body = change(options, image, existing) if existing else creation(options, image, name)
        if options.dry_run:
            request = f"PATCH {rest.url}{existing.path}" if existing else f"POST {rest.url}{PATH}"
            return f"{request}\n{json.dumps(_shown(body, options), indent=2)}"
        endpoint = rest.update(existing, body) if existing else rest.create(body)
    endpoint_id = one_line(endpoint.id)
    return (
        f"{'Updated' if existing else 'Created'}    {one_line(f'{name}: {endpoint.image or image}')}\n"
        f"Endpoint   {endpoint_id}\n"
        f"Call it    RUNPOD_ENDPOINT_ID={shlex.quote(endpoint_id)} python -m endpoint.client runsync test_input.json"
    )


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
        settings["env"] = {**env, **options.env}
    if options.timeout:
        settings["timeout"] = options.timeout * 1000
    if options.registry:
        settings["registry"] = options.registry
    return settings


def _shown(body: dict[str, Any], options: Options) -> dict[str, Any]:
    """Return ``body`` without the values that nobody typed: variables of this machine and of the endpoint."""
    if "env" not in body:
        return body
    return body | {"env": {name: value if name in options.typed else "***" for name, value in body["env"].items()}}


def _tell(details: RetryDetails) -> None:
    print(without_key(f"{reason(details.caused_by)}: trying again in {details.wait_for:.0f} s."), file=sys.stderr)


if __name__ == "__main__":
    main()
