"""The worker's log, under the job's id.

Nothing here raises, not even on a full disk: a log line must not cost a result.
"""

import json
import os
import sys
from contextlib import suppress
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TextIO

from aggregating_worker.sentence import printable

if TYPE_CHECKING:
    from runpod import RunPodLogger

LOCAL = "local"
"""The id of the local endpoint. What else has a terminal may be the platform, which reads JSON."""


@cache
def _log() -> "RunPodLogger":
    from runpod import RunPodLogger  # when it is first used: a process of the task starts before the SDK is imported

    return RunPodLogger()


def info(message: str, job_id: str | None = None) -> None:
    """Log one line at level INFO."""
    with suppress(Exception):
        _log().info(printable(message), job_id)


def warning(message: str, job_id: str | None = None) -> None:
    """Log one line at level WARN."""
    with suppress(Exception):
        _log().warn(printable(message), job_id)


def error(message: str, job_id: str | None = None, trace: str = "") -> None:
    """Log ``message`` and an exception's ``trace``, which goes nowhere else. The SDK cuts long ones in the middle."""
    with suppress(Exception):
        _log().error(printable(f"{message}\n{trace}" if trace else message), job_id)


def for_people(text: str) -> str:
    """Return lines of a worker's log as the SDK prints them in the local test, and others as they are.

    On an endpoint each is JSON (runpod 1.12.0, ``rp_logger.py``), and a traceback one line.
    """
    return "\n".join(map(_for_people, text.split("\n")))


def _for_people(written: str) -> str:
    try:
        match json.loads(written):
            case {"requestId": str() | None as job_id, "message": str(message), "level": str(level)}:
                return printable(f"{level:<7}| {job_id} | {message}" if job_id else f"{level:<7}| {message}")
    except (ValueError, RecursionError):
        pass
    return written


def _print(stream: TextIO, text: str, **options: Any) -> None:
    with suppress(Exception):
        seen = stream.isatty() and os.environ.get("RUNPOD_ENDPOINT_ID") == LOCAL
        print(for_people(text) if seen else text, file=stream, **options)


def line(level: str, message: str, job_id: str | None = None) -> None:
    """Log one line at the level of this name."""
    with suppress(Exception):
        _log().log(printable(message), level, job_id)


def keep_writing() -> None:
    """Have the SDK print to the present standard output, whatever happens to it.

    The SDK prints in its job loop (1.12.0, ``rp_scale``), which would end if ``print`` raised.
    """
    from runpod.serverless.modules import rp_logger

    rp_logger.print = partial(_print, sys.stdout)
