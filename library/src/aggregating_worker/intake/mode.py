"""Finds out, before the SDK starts, how it will run the handler."""

import json
import os
from enum import Enum
from pathlib import Path

import runpod

from aggregating_worker.before_sdk import LOG_LEVELS
from aggregating_worker.refusal import Refused


class Mode(Enum):
    """The SDK's modes and what asks for each, in the order in which it looks (1.12.0, ``serverless/__init__.py``)."""

    API = "--rp_serve_api"
    REALTIME = "RUNPOD_REALTIME_PORT"
    LOCAL_TEST = "--test_input, or no RUNPOD_WEBHOOK_GET_JOB"
    PRODUCTION = "RUNPOD_WEBHOOK_GET_JOB"

    @property
    def iterates(self) -> bool:
        """Whether the SDK iterates over a generator; if not, it calls the handler once."""
        return self in (Mode.API, Mode.PRODUCTION)


def find_mode() -> Mode:
    """Return the mode that the arguments and the environment ask for.

    Raises ``Refused`` for what would make the SDK fail with a traceback or lose the job.
    """
    arguments, _ = runpod.serverless.parser.parse_known_args()
    if arguments.rp_debugger:  # rp_job.handle_job takes the output for a dict; ours is a list, and would be lost
        raise Refused("--rp_debugger does not work with aggregated output: leave it out.")
    if (level := arguments.rp_log_level) and level.upper() not in LOG_LEVELS:
        raise Refused(f"--rp_log_level {level}: choose one of {', '.join(LOG_LEVELS)}.")
    if arguments.rp_serve_api:
        return Mode.API
    if int(os.environ.get("RUNPOD_REALTIME_PORT", "0")):
        return Mode.REALTIME
    if arguments.test_input and _job("--test_input", arguments.test_input.encode("utf-8", "surrogateescape")):
        return Mode.LOCAL_TEST
    if "RUNPOD_WEBHOOK_GET_JOB" in os.environ:
        return Mode.PRODUCTION
    if (file := Path("test_input.json")).exists():
        try:
            _job(file.name, file.read_bytes())
        except OSError as error:
            raise Refused(f"{file.name} cannot be read: {error.strerror}.") from None
    return Mode.LOCAL_TEST


def _job(source: str, text: bytes) -> dict[str, object]:
    try:
        job = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Refused(f"{source} is not valid JSON: {error}.") from None
    if not isinstance(job, dict):
        raise Refused(f'{source} must be a JSON object: {{"input": {{"items": […]}}}}.')
    return job
