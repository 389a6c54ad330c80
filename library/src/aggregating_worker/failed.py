"""How a task fails an item on purpose, and says more about it than another exception can."""

from typing import Any


class ItemFailed(Exception):
    """Raise it, or return it among a batch's results, to fail an item.

    ``type``, the message and ``details``, any JSON, are what the caller sees. ``refresh_worker`` asks for a new worker
    after the job; ``restart``, for a new process for the task, at once: it cannot be trusted any more.
    """

    def __init__(
        self,
        message: str,
        *,
        type: str = "ItemFailed",  # noqa: A002  # the envelope's own word
        details: Any = None,
        refresh_worker: bool = False,
        restart: bool = False,
    ) -> None:
        super().__init__(message)
        self.type = type
        self.details = details
        self.refresh_worker = refresh_worker
        self.restart = restart
