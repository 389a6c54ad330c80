"""The worker's log, under the job's id.

Nothing here raises, not even on a full disk: a log line must not cost a result.
"""

import sys
from contextlib import suppress
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TextIO

from aggregating_worker.sentence import printable

if TYPE_CHECKING:
    from runpod import RunPodLogger


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


def _print(stream: TextIO, text: str, **options: Any) -> None:
    with suppress(Exception):
        print(text, file=stream, **options)


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
