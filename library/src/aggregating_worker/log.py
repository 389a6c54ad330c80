"""What the worker writes to the log, under the job's id: its own lines, and those of the task's standard logging.

Nothing here raises, not for a full disk either: a log must not cost a result.
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
    """Log ``message``, and the ``trace`` of an exception, which goes nowhere else. The SDK cuts the middle out of a long one."""
    with suppress(Exception):
        _log.error(f"{message}\n{trace}" if trace else message, job_id)


def _print(stream: TextIO, text: str, **options: Any) -> None:
    with suppress(Exception):
        print(text, file=stream, **options)


class TaskLog(logging.Handler):
    """Takes what the task, or a library, logs; in place of the SDK's (1.12.0, ``rp_upload``), which knows no job."""

    def install(self) -> None:
        """Listen to every logger; and have the SDK print to what is standard output now, whatever a task puts there.

        It prints in its own loops (1.12.0, ``rp_scale``), which what is raised there would end.
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
            except Exception:  # its arguments are not those of its text
                message = f"{record.msg!r} {record.args!r}"
            name = "WARN" if record.levelno == logging.WARNING else logging.getLevelName(min(record.levelno, 40))
            _log.log(message if index is None else f"Item {index}: {message}", str(name), job_id)
