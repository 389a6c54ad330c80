"""What a deployment ends with: whether a worker of the endpoint comes up and, if none does, why."""

import os
import time

from aggregating_worker.client.api import BASE_URL
from aggregating_worker.client.waiting import why
from aggregating_worker.deploy.rest import DeployFailed, Endpoint, Rest, api_key, api_url

UP = ("idle", "ready", "running")
EVERY = 2.0
"""Seconds between two looks."""


def why_not_up(endpoint: Endpoint, seconds: float) -> str:
    """Return, after so many seconds, why no worker of ``endpoint`` is up; an empty text as soon as one is.

    Of an updated endpoint, it may be one that still has the old image. One with a minimum of no worker may have none
    until its first job comes (the API's contract, ``POST /v2/serverless``).
    """
    if os.environ.get("RUNPOD_API_BASE_URL") and not os.environ.get("RUNPOD_ENDPOINT_BASE_URL"):
        return ""  # who is asked instead of Runpod has made the endpoint, and Runpod does not know it
    until = time.monotonic() + seconds
    while True:
        try:
            left = max(EVERY, until - time.monotonic())
            health = Rest(api_key(), (), api_url("RUNPOD_ENDPOINT_BASE_URL", BASE_URL)).health(endpoint, left)
            if any(health["workers"].get(state) for state in UP):
                return ""
            found = why(health)
            if not any(health["workers"].values()) and endpoint.workers.get("max") and not endpoint.workers.get("min"):
                found = "No worker runs yet: the first job starts one."
        except DeployFailed as failed:  # the job API may learn of an endpoint later than the other
            found = f"Whether a worker comes up is not known: {failed.why}."
        if time.monotonic() + EVERY > until:
            return found
        time.sleep(EVERY)
