"""What the worker writes to the log, under the job's id.

Nothing here raises, not for a full disk either: a log must not cost a result.
"""

from contextlib import suppress

from runpod import RunPodLogger

from worker.outcome.result import Raised

_log = RunPodLogger()


def info(message: str, job_id: str) -> None:
    """Log one line at level INFO."""
    with suppress(Exception):
        _log.info(message, job_id)


def warning(message: str) -> None:
    """Log one line at level WARN."""
    with suppress(Exception):
        _log.warn(message)


def error(message: str, raised: Raised | None, job_id: str | None = None) -> None:
    """Log ``message`` and a traceback, which goes nowhere else. The SDK cuts the middle out of a long one."""
    with suppress(Exception):
        _log.error(f"{message}\n{raised.trace}" if raised else message, job_id)
