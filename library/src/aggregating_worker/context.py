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


in_call: ContextVar[tuple[str | None, int | None]] = ContextVar("in_call", default=(None, None))
"""The job's id and the item's index of the call that runs here; None where its items have different ones."""
