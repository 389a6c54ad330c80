"""What a task may ask about an item: its job, its index, and a folder for the files in its result."""

import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_making = threading.Lock()


@dataclass(frozen=True, slots=True)
class Context:
    """An item's job id, its ``index``, and the ``job`` as the platform sent it, without credentials."""

    job_id: str
    index: int
    job: Mapping[str, Any]
    _make: Callable[[], str] = field(default=tempfile.mkdtemp, repr=False, compare=False)
    _folders: list[Path] = field(default_factory=list, init=False, repr=False, compare=False)
    """The folder, once it is made."""

    @property
    def folder(self) -> Path:
        """A folder that no other item has, nor another attempt of this one; made when it is first asked for.

        The worker removes it, with all that is in it, once it has read the files in the result, or the item has failed.
        Raises ``OSError`` if it cannot be made.
        """
        with _making:  # the task may ask in several threads
            if not self._folders:
                self._folders.append(Path(self._make()))
        return self._folders[0]


def folders_of(contexts: Iterable[Context]) -> list[Path]:
    """Return the folders that the task has asked for."""
    return [folder for context in contexts for folder in context._folders]


@dataclass(frozen=True, slots=True)
class Where:
    """The call that runs here; the job's id and the item's index are None where its items have different ones."""

    call: int = 0
    job_id: str | None = None
    index: int | None = None


NOWHERE = Where()
in_call: ContextVar[Where] = ContextVar("in_call", default=NOWHERE)
