"""``aggregating-worker deploy``: put the image on a Runpod endpoint. The same name twice is one endpoint, updated."""

import json
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from aggregating_worker.deploy.bodies import change, creation
from aggregating_worker.deploy.options import Options, read_options
from aggregating_worker.deploy.project import project_image, project_name
from aggregating_worker.deploy.refusal import Refused, reason, without_key
from aggregating_worker.deploy.rest import PATH, Rest, api_key
from aggregating_worker.sentence import KEYS, one_line


def main(argv: Sequence[str]) -> None:
    """Create the endpoint or update it; print its id and the command that calls it. An error is a sentence and exit 1.

    Two of these at the same moment, with a new name, create two endpoints, since the API takes any name; the one that
    came second is deleted again by whoever made it.
    """
    options = read_options(argv[1:])
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
        raise Refused(f"RUNPOD_API_KEY is not set: make a key at {KEYS}, under API Keys, and export it.")
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
        if not existing and (first := rest.first(name, endpoint)) != endpoint:
            rest.delete(endpoint)
            existing = first
            endpoint = rest.update(first, change(options, image, first))
    endpoint_id = one_line(endpoint.id)
    return (
        f"{'Updated' if existing else 'Created'}    {one_line(f'{name}: {endpoint.image or image}')}\n"
        f"Endpoint   {endpoint_id}\n"
        f"Call it    RUNPOD_ENDPOINT_ID={shlex.quote(endpoint_id)} aggregating-worker runsync test_input.json"
    )


def _shown(body: dict[str, Any], options: Options) -> dict[str, Any]:
    """Return ``body`` without the values that nobody typed: variables of this machine and of the endpoint."""
    if "env" not in body:
        return body
    return body | {"env": {name: value if name in options.typed else "***" for name, value in body["env"].items()}}


def _tell(details: RetryDetails) -> None:
    print(without_key(f"{reason(details.caused_by)}: trying again in {details.wait_for:.0f} s."), file=sys.stderr)

