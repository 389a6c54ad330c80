"""What the worker writes to the log, under the job's id.

Nothing here raises, whatever a full disk or the ``__str__`` of a task's exception does: a log must not cost a result.
"""

import traceback
from contextlib import suppress

from runpod import RunPodLogger

from worker.refusal import sendable

MAX_CHARACTERS = 4_096
"""The SDK's logger cuts the middle out of a longer message (1.12.0, ``rp_logger.MAX_MESSAGE_LENGTH``)."""

_log = RunPodLogger()


def info(message: str, job_id: str) -> None:
    """Log one line at level INFO."""
    with suppress(BaseException):
        _log.info(message, job_id)


def error(message: str, cause: BaseException, job_id: str | None = None) -> None:
    """Log ``message`` and the end of the traceback of ``cause``. The traceback goes nowhere else."""
    with suppress(BaseException):
        trace = "".join(traceback.format_exception(cause))[-MAX_CHARACTERS // 2 :]
        _log.error(sendable(f"{message}\n{trace}", MAX_CHARACTERS), job_id)
