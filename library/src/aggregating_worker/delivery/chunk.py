"""A chunk: what a job yields, posted to ``/stream`` at once and later part of the aggregate."""

import json
from collections.abc import Mapping, Sequence
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
        """The chunk as JSON values, for those who encode it themselves; of a failure without an envelope, an error."""
        if self.output.bare:
            answer = json.loads(b"{%b}" % self.outcomes[0].bare)
            return {"error": answer["error"]} if "error" in answer else answer["output"]
        bodies = [outcome.body for outcome in self.outcomes]
        return bodies if self.listed else bodies[0]

    def encode(self) -> list[bytes]:
        """Return the chunk as JSON, in pieces."""
        if not self.listed:
            return [self.outcomes[0].encoded]
        pieces = [piece for outcome in self.outcomes for piece in (b", ", outcome.encoded)]
        return [b"[", *pieces[1:], b"]"]

    def body(self) -> list[bytes]:
        """Return the body that posts the chunk to the stream, in pieces.

        It is empty if a caller who knows of no envelopes has everything already, or is told by the job's failure.
        """
        if not self.output.bare:
            return [b'{"output": ', *self.encode(), b"}"]
        [outcome] = self.outcomes
        return [b"{", outcome.bare, b"}"] if outcome.success and not self.output.in_parts else []


def final_body(chunks: Sequence[Chunk], rest: Mapping[str, Any]) -> list[bytes]:
    """Return a job's final body in pieces: joined, the results would be in memory twice."""
    others = json.dumps(rest).encode("ascii")
    if not chunks:
        return [others]
    if chunks[0].output.bare:
        pieces = [b"{", chunks[0].outcomes[0].bare, b""]
    else:
        pieces = [b'{"output": [']
        for chunk in chunks:
            pieces += [*chunk.encode(), b", "]
        pieces[-1] = b"]"
    return [*pieces, b", " + others[1:] if rest else b"}"]
