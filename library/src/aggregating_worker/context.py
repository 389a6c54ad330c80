"""Where an item comes from, for a task that asks."""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Context:
    """One item's place: its job's id, its ``index`` there, and the ``job`` as the platform sent it, no credentials."""

    job_id: str
    index: int
    job: Mapping[str, Any]


in_call: ContextVar[tuple[str | None, int | None]] = ContextVar("in_call", default=(None, None))
"""The job's id and the item's index of the call that is under way here, as far as all of its items have the same."""
