"""The sum of a job's envelopes, kept within ``MAX_OUTPUT_BYTES``: what does not fit goes to a bucket, if there is one.

Nothing in the SDK (1.12.0) measures the aggregate: a final body over the platform's limit is refused there, and the
job is lost. So what does not fit becomes a reference, or a short failure, before it is yielded.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache, partial

from aggregating_worker import log
from aggregating_worker.outcome.bucket import Bucket, NotStored
from aggregating_worker.outcome.files import Unencoded
from aggregating_worker.outcome.result import Outcome, describe, failure, reference, success_with_files
from aggregating_worker.refusal import Refused

BODY_AROUND_CHUNKS = len('{"output": [], "stopPod": true}')
"""At most: a result may ask for a new worker after the job."""
SEPARATOR = len(", ")
CHUNK_BRACKETS = len("[]")
TOO_LARGE = "OutputTooLarge"
CHUNK_BYTES = 1_000_000 - BODY_AROUND_CHUNKS
"""The platform's limit for one streamed chunk, less what the SDK and a list put around the envelopes."""
FULL = "The response is full (MAX_OUTPUT_BYTES): send fewer items per job, or let the worker have a bucket."
REFUSED = "The platform refused a response of this size: send fewer items per job, or let the worker have a bucket."
MOST_BYTES = 10**15
"""A size that no result has, for the reference that it would get."""


class Output:
    """One job's response: at most ``limit`` bytes, with an envelope for each of ``items`` items.

    With a ``bucket``, room for a reference is kept for every item to come, unless there are too many for that. Raises
    ``Refused`` if not even the shortest envelope for each item fits.
    """

    def __init__(
        self,
        job_id: str,
        items: int,
        limit: int,
        *,
        first_index: int = 0,
        chunked: bool = False,
        bucket: Bucket | None = None,
        inline_file_bytes: int = 100_000,
    ) -> None:
        self.size = BODY_AROUND_CHUNKS
        self.refresh_worker = False
        """Whether a result asks for a new worker after the job."""
        self.failing_since: float | None = None
        """Since when the platform has not taken the job's chunks, in seconds of ``time.monotonic``."""
        self._job_id = job_id
        self._left = items
        self._limit = limit
        self._bucket = bucket
        self._inline_file_bytes = inline_file_bytes
        self._around = SEPARATOR + (CHUNK_BRACKETS if chunked else 0)
        for size, message in self._reserves(first_index + items):
            self._reserve, self._message = size + self._around, message
            if self.size + items * self._reserve <= limit:
                return
        raise Refused(f"{items} items do not fit in a response of {limit} bytes: send fewer items per job.")

    def _reserves(self, last: int) -> Iterator[tuple[int, str]]:
        """Yield what could be kept free for each item, and what a stand-in then says, the best first."""
        full = _stand_in_bytes(last, FULL)
        if self._bucket:
            yield max(self._reference(self._bucket, last, MOST_BYTES), full), FULL
        yield full, FULL
        yield _stand_in_bytes(last, ""), ""  # a job of very many items has room for the type only

    def admit(self, envelope: Outcome) -> Outcome | Callable[[], Outcome]:
        """Take the room for the next item in order; return what goes inline, or what stores it first, and blocks.

        That is ``envelope`` itself, or if it is too large a reference, or without room for one its short stand-in.
        """
        self._left -= 1
        too_large_to_stream = self._bucket and envelope.result and envelope.size > CHUNK_BYTES
        if not too_large_to_stream and self._claim(envelope.size):
            return envelope
        if self._bucket and envelope.result:
            body = envelope.result
            if self._claim(size := self._reference(self._bucket, envelope.index, len(body))):
                return partial(self._store, self._bucket, envelope.index, body, size)
        stand_in = failure(envelope.index, TOO_LARGE, self._message)
        self._claim(stand_in.size)
        return stand_in

    def seal(self, index: int, value: Unencoded) -> Outcome:
        """Return the envelope of a result with files in it: a large one is stored, if there is a bucket. Blocks."""

        def place(content: bytes, content_type: str, name: str) -> str | None:
            if not self._bucket or len(content) <= self._inline_file_bytes:
                return None
            name = f"{index}-{name}"
            return self._bucket.store(f"{self._job_id}/{name}", content, content_type, name)

        try:
            return success_with_files(index, value, place)
        except BaseException as error:  # the texts and the images are the task's
            raised = describe(error)
            log.error(f"Item {index}: a file of its result could not be sent", self._job_id, raised.trace)
            return raised.envelope(index)

    def shrink(self, envelopes: list[Outcome], spare: int) -> list[Outcome] | None:
        """Return ``envelopes`` with the largest results stored, or else in their short form, to spare so many bytes.

        None if nothing can be spared. Blocks while it stores.
        """
        smaller = list(envelopes)
        left = spare
        for place in sorted(range(len(envelopes)), key=lambda place: -envelopes[place].size):
            envelope = envelopes[place]
            if left <= 0:
                break
            if not envelope.result:
                continue
            short = failure(envelope.index, TOO_LARGE, REFUSED)
            if self._bucket and self._reference(self._bucket, envelope.index, MOST_BYTES) < envelope.size:
                short = self._store(self._bucket, envelope.index, envelope.result, envelope.size)
            if short.size < envelope.size:
                smaller[place] = short
                left -= envelope.size - short.size
        return smaller if left < spare else None

    def _claim(self, size: int) -> bool:
        """Take the room for an envelope of ``size`` bytes; False if too little were left for the items to come."""
        if self.size + size + self._around + self._left * self._reserve > self._limit:
            return False
        self.size += size + self._around
        return True

    def _reference(self, bucket: Bucket, index: int, size: int) -> int:
        """Return how long the reference to a result of ``size`` bytes is, at most."""
        return reference(index, "x" * bucket.url_bytes(self._key(index)), size).size

    def _store(self, bucket: Bucket, index: int, body: bytes, most: int) -> Outcome:
        try:
            return reference(index, bucket.store(self._key(index), body), len(body))
        except NotStored as error:
            log.error(f"Item {index}: {error}", self._job_id)
            envelope = failure(index, "NotStored", str(error))
            return envelope if envelope.size <= most else failure(index, "NotStored", "")

    def _key(self, index: int) -> str:
        return f"{self._job_id}/{index}.json"


@lru_cache(maxsize=64)
def _stand_in_bytes(index: int, message: str) -> int:
    return failure(index, TOO_LARGE, message).size
