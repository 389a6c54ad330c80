"""The sum of a job's envelopes, kept within ``MAX_OUTPUT_BYTES``: what does not fit goes to a bucket, if there is one.

Nothing in the SDK (1.12.0) measures the aggregate: a final body over the platform's limit is refused there, and the
job is lost. So what does not fit becomes a reference, or a short failure, before it is yielded.
"""

from collections.abc import Callable
from functools import partial

from worker import log
from worker.bucket import Bucket, NotStored
from worker.refusal import Refused
from worker.result import Envelope, encoded, failure, reference

BODY_AROUND_CHUNKS = len('{"output": []}')
SEPARATOR = len(", ")
CHUNK_BRACKETS = len("[]")
TOO_LARGE = "OutputTooLarge"
CHUNK_BYTES = 1_000_000 - BODY_AROUND_CHUNKS
"""The platform's limit for one streamed chunk, less what the SDK and a list put around the envelopes."""
FULL = "The response is full (MAX_OUTPUT_BYTES): send fewer items per job, or let the worker have a bucket."


class Output:
    """One job's response: at most ``limit`` bytes, with an envelope for each of ``items`` items.

    With a ``bucket``, room for a reference is kept for every item to come, unless there are too many for that. Raises
    ``Refused`` if not even the shortest envelope for each item fits.
    """

    def __init__(
        self, job_id: str, items: int, limit: int, *, chunked: bool = False, bucket: Bucket | None = None
    ) -> None:
        self.size = BODY_AROUND_CHUNKS
        self._job_id = job_id
        self._items = items
        self._limit = limit
        self._bucket = bucket
        self._around = SEPARATOR + (CHUNK_BRACKETS if chunked else 0)
        self._taken: dict[int, int] = {}
        reserves = [(failure(items, TOO_LARGE, message).size, message) for message in (FULL, "")]
        if bucket:
            url = "x" * bucket.url_bytes(self._key(items))
            reserves.insert(0, (reference(items, url, limit).size, FULL))
        for size, self._message in reserves:  # a job of very many items has room for the type only
            self._reserve = size + self._around
            if self.size + items * self._reserve <= limit:
                return
        raise Refused(f"{items} items do not fit in a response of {limit} bytes: send fewer items per job.")

    def claim(self, envelope: Envelope) -> bool:
        """Take the room for ``envelope``, in place of what its item had; False if too little were left for the rest."""
        needed = envelope.size + self._around
        had = self._taken.get(envelope.index, 0)
        size = self.size - had + needed
        unsettled = self._items - len(self._taken) - (not had)
        if size + unsettled * self._reserve > self._limit:
            return False
        self._taken[envelope.index] = needed
        self.size = size
        return True

    def admit(self, envelope: Envelope) -> Envelope:
        """Return ``envelope``, or its short stand-in if there is no room for it."""
        if not self.claim(envelope):
            envelope = failure(envelope.index, TOO_LARGE, self._message)
            self.claim(envelope)
        return envelope

    def overflow(self, envelope: Envelope) -> Callable[[], Envelope] | None:
        """Return what stores the result of ``envelope`` and makes a reference, and blocks; None if it goes inline."""
        if not (self._bucket and envelope.success):
            return None
        if envelope.size <= CHUNK_BYTES and self.claim(envelope):
            return None
        return partial(self._store, self._bucket, envelope)

    def _store(self, bucket: Bucket, envelope: Envelope) -> Envelope:
        body = encoded(envelope.body["result"])
        try:
            return reference(envelope.index, bucket.store(self._key(envelope.index), body), len(body))
        except NotStored as error:
            log.error(f"Item {envelope.index}: {error}", None, self._job_id)
            return failure(envelope.index, "NotStored", str(error))

    def _key(self, index: int) -> str:
        return f"{self._job_id}/{index}.json"
