"""Notices a process that cannot work any more: a broken one fails fast, and so takes more jobs than a healthy one."""

from collections.abc import Iterable

from aggregating_worker.outcome.result import Raised

ALIKE = 3
"""Calls in a row that fail with equal type and message, over more than one job, after which a process is replaced."""


class Health:
    """What a process's calls say of it, over all its lives."""

    def __init__(self) -> None:
        self.hopeless = False
        """Whether a process was to be replaced, and the next has done no better: it is the machine."""
        self._replaced = False
        self._forget()

    def _forget(self) -> None:
        self._row = 0
        self._last: tuple[str, str] | None = None
        self._jobs: set[str] = set()

    def succeeded(self) -> None:
        """Take note of a call that has returned."""
        self._replaced = False
        self._forget()

    def failed(self, raised: Raised, jobs: Iterable[str]) -> bool:
        """Take note of a call that has raised; return whether the process is to be replaced."""
        if raised.deliberate:  # the task knows what it does
            return False
        if (raised.kind, raised.message) != self._last:
            self._forget()
        self._row += 1
        self._last = (raised.kind, raised.message)
        self._jobs |= {*jobs}
        if self._row < ALIKE or len(self._jobs) < 2:
            return False
        self.hopeless, self._replaced = self._replaced, True
        self._forget()
        return True
