"""What a task may ask about an item: its job and its index."""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Context:
    """An item's job id, its ``index``, and the ``job`` as the platform sent it, without credentials."""

    job_id: str
    index: int
    job: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Where:
    """The call that runs here; the job's id and the item's index are None where its items have different ones."""

    call: int = 0
    job_id: str | None = None
    index: int | None = None


NOWHERE = Where()
in_call: ContextVar[Where] = ContextVar("in_call", default=NOWHERE)
