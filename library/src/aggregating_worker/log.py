"""The worker's log, under the job's id: its own lines and what the task logs.

Nothing here raises, not even on a full disk: a log line must not cost a result.
"""

import logging
import sys
from contextlib import suppress
from functools import partial
from typing import Any, TextIO

from runpod import RunPodLogger
from runpod.serverless.modules import rp_logger

from aggregating_worker.context import in_call

_log = RunPodLogger()


def info(message: str, job_id: str | None = None) -> None:
    """Log one line at level INFO."""
    with suppress(Exception):
        _log.info(message, job_id)


def warning(message: str, job_id: str | None = None) -> None:
    """Log one line at level WARN."""
    with suppress(Exception):
        _log.warn(message, job_id)


def error(message: str, job_id: str | None = None, trace: str = "") -> None:
    """Log ``message`` and an exception's ``trace``, which goes nowhere else. The SDK cuts long ones in the middle."""
    with suppress(Exception):
        _log.error(f"{message}\n{trace}" if trace else message, job_id)


def _print(stream: TextIO, text: str, **options: Any) -> None:
    with suppress(Exception):
        print(text, file=stream, **options)


class TaskLog(logging.Handler):
    """Logs what the task or a library logs, under its job, which the SDK's handler (1.12.0, ``rp_upload``) cannot."""

    def install(self) -> None:
        """Listen to every logger. Also have the SDK print to the present standard output, even if a task replaces it.

        The SDK prints in its job loop (1.12.0, ``rp_scale``), which would end if ``print`` raised.
        """
        rp_logger.print = partial(_print, sys.stdout)
        logging.root.handlers = [each for each in logging.root.handlers if type(each) is not logging.StreamHandler]
        logging.root.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record under the job's id and the item's index."""
        with suppress(Exception):
            job_id, index = in_call.get()
            try:
                message = self.format(record)
            except Exception:  # the arguments do not fit the text
                message = f"{record.msg!r} {record.args!r}"
            name = "WARN" if record.levelno == logging.WARNING else logging.getLevelName(min(record.levelno, 40))
            _log.log(message if index is None else f"Item {index}: {message}", str(name), job_id)
