"""What a job yields: a chunk of envelopes, for the stream and then for the aggregate."""

from dataclasses import dataclass
from typing import Any

from aggregating_worker.outcome.overflow import Output
from aggregating_worker.outcome.result import Outcome


@dataclass(frozen=True, eq=False, slots=True)
class Chunk:
    """What a job yields to the SDK, which only hands it on: envelopes, or one of them by itself if not ``listed``."""

    envelopes: list[Outcome]
    output: Output
    listed: bool

    def __repr__(self) -> str:  # cheap: the SDK prints what is yielded into log lines that nobody sees
        return f"<chunk of {len(self.envelopes)}>"

    @property
    def plain(self) -> Any:
        """The chunk for those who encode it themselves."""
        bodies = [envelope.body for envelope in self.envelopes]
        return bodies if self.listed else bodies[0]

    def encode(self) -> bytes:
        """Return the chunk as it is sent."""
        joined = b", ".join(envelope.encoded for envelope in self.envelopes)
        return b"[%b]" % joined if self.listed else joined
