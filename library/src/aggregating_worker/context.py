"""What a task has beside an item: its job, its index, a folder for files, and a way to say how far it is."""

import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_making = threading.Lock()


def _unheard(_: object) -> None:
    """Say nothing to nobody."""


@dataclass(frozen=True, slots=True)
class Context:
    """An item's job id, its ``index``, and the ``job`` as the platform sent it, without credentials."""

    job_id: str
    index: int
    job: Mapping[str, Any]
    _make: Callable[[], str] = field(default=tempfile.mkdtemp, repr=False, compare=False)
    _tell: Callable[[Any], None] = field(default=_unheard, repr=False, compare=False)
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

    def progress(self, value: Any) -> None:
        """Have ``/status`` show how far the item is: ``{"progress": [{"index": 3, "value": …}, …]}`` of those that run.

        ``value`` may be anything with a JSON form. Any thread may call this, as often as it likes: the latest value is
        sent, once a second for all items of a job, and none after the job's result. Raises nothing.
        """
        self._tell(value)


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


class Updates:
    """Who hears of the SDK's ``progress_update`` in this process: given the job's id, where it is called, the value."""

    hear: Callable[[str, Where, Any], None] = staticmethod(lambda *_: None)


def progress_update(job: Mapping[str, Any], progress: Any) -> None:
    """Stand in for the SDK's function (``before_sdk``): it is as ``Context.progress`` of the item that calls it."""
    if isinstance(job, Mapping) and isinstance(job_id := job.get("id"), str):  # else the SDK's own does nothing
        Updates.hear(job_id, in_call.get(), progress)
