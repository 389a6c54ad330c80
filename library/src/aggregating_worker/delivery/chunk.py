"""A chunk: what a job yields, posted to ``/stream`` at once and later part of the aggregate."""

from dataclasses import dataclass
from typing import Any

from aggregating_worker.outcome.overflow import Output
from aggregating_worker.outcome.result import Outcome


@dataclass(frozen=True, eq=False, slots=True)
class Chunk:
    """Outcomes that a job yields together, for the SDK to hand on; one by itself if not ``listed``."""

    outcomes: list[Outcome]
    output: Output
    listed: bool

    def __repr__(self) -> str:  # short: the SDK formats what is yielded for debug lines
        return f"<chunk of {len(self.outcomes)}>"

    @property
    def plain(self) -> Any:
        """The chunk as JSON values, for those who encode it themselves."""
        bodies = [outcome.body for outcome in self.outcomes]
        return bodies if self.listed else bodies[0]

    def encode(self) -> list[bytes]:
        """Return the chunk as it is sent, in pieces."""
        if not self.listed:
            return [self.outcomes[0].encoded]
        pieces = [piece for outcome in self.outcomes for piece in (b", ", outcome.encoded)]
        return [b"[", *pieces[1:], b"]"]
