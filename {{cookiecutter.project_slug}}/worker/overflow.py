"""The sum of a job's envelopes, kept within ``MAX_OUTPUT_BYTES``.

Nothing in the SDK (1.12.0) measures the aggregate: a final body over the platform's limit is refused there, and the
job is lost. So what does not fit becomes a short failure here, before it is yielded.
"""

from worker.refusal import Refused
from worker.result import Envelope, failure

BODY_AROUND_CHUNKS = len('{"output": []}')
SEPARATOR = len(", ")
CHUNK_BRACKETS = len("[]")
EXPLANATION = "The response is full (MAX_OUTPUT_BYTES): send fewer items per job."


class Output:
    """One job's response: at most ``limit`` bytes, with an envelope for each of ``items`` items.

    Raises ``Refused`` if not even the shortest envelope for each item fits.
    """

    def __init__(self, items: int, limit: int, *, chunked: bool) -> None:
        self.size = BODY_AROUND_CHUNKS
        self._limit = limit
        self._unsettled = items
        self._around = SEPARATOR + (CHUNK_BRACKETS if chunked else 0)
        for self._message in (EXPLANATION, ""):  # a job of very many items has room for the type only
            self._reserve = self._too_large(items).size + self._around
            if self.size + items * self._reserve <= limit:
                return
        raise Refused(f"{items} items do not fit in a response of {limit} bytes: send fewer items per job.")

    def admit(self, envelope: Envelope) -> Envelope:
        """Return ``envelope``, or its short stand-in if it would leave too little room for the items still to come."""
        self._unsettled -= 1
        needed = envelope.size + self._around
        if self.size + needed + self._unsettled * self._reserve > self._limit:
            envelope = self._too_large(envelope.index)
            needed = envelope.size + self._around
        self.size += needed
        return envelope

    def _too_large(self, index: int) -> Envelope:
        return failure(index, "OutputTooLarge", self._message)
