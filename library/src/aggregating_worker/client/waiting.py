"""Why a job waits, from what ``/health`` says of an endpoint's workers."""

from typing import Any


def why(health: dict[str, Any]) -> str:
    """Return a sentence about an endpoint none of whose workers is ready."""
    workers = {state: number for state, number in health["workers"].items() if number}
    if not workers:
        return (
            "The endpoint has no workers: is its maximum 0? The platform turns an idle endpoint down after some days."
        )
    if "unhealthy" in workers:
        return "The endpoint's workers die at their start: their log in the console says why."
    if "throttled" in workers:
        return "The endpoint's workers are throttled: no machine of this kind is free. Another GPU or CPU may be."
    return "The endpoint's workers are still starting."
