"""What the task or a library logs, with the job and the item of the call that it is logged in."""

import logging
from collections.abc import Callable
from contextlib import suppress

from aggregating_worker.context import Where, in_call


class TaskLog(logging.Handler):
    """Hands each record to ``line``: where it was logged, the level's name in the SDK's log, and the text.

    Nothing here raises: a log line must not cost a result.
    """

    def __init__(self, line: Callable[[Where, str, str], None]) -> None:
        super().__init__()
        self._line = line

    def install(self) -> None:
        """Listen to every logger, in place of the SDK's handler (1.12.0, ``rp_upload``), which knows of no job."""
        ours = (logging.StreamHandler, TaskLog)
        logging.root.handlers = [each for each in logging.root.handlers if type(each) not in ours]
        logging.root.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Hand on a record."""
        with suppress(Exception):
            where = in_call.get()
            try:
                message = self.format(record)
            except Exception:  # the arguments do not fit the text
                message = f"{record.msg!r} {record.args!r}"
            name = "WARN" if record.levelno == logging.WARNING else logging.getLevelName(min(record.levelno, 40))
            self._line(where, str(name), message if where.index is None else f"Item {where.index}: {message}")
