"""Keeps a job's response within ``MAX_OUTPUT_BYTES``: results that do not fit go to the bucket, if there is one.

Nothing in the SDK (1.12.0) measures the aggregate: the platform refuses a final body that is too large, and the job is
lost. So a result that does not fit is replaced by a reference or a short failure before it is yielded.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import product

from aggregating_worker import log
from aggregating_worker.outcome.bucket import Bucket, NotStored
from aggregating_worker.outcome.result import Outcome, failure, reference, success_with_files
from aggregating_worker.refusal import Refused

BODY = len('{"output": []}')
STOP_POD = len(', "stopPod": true')
"""Bytes more of a final body that asks for a new worker after the job."""
SEPARATOR = len(", ")
CHUNK_BRACKETS = len("[]")
TOO_LARGE = "OutputTooLarge"
CHUNK_BYTES = 1_000_000 - BODY
"""The platform's limit for one streamed chunk, less what the SDK and a list put around the envelopes."""
MOST_BYTES = 10**15
"""More than any result has: the size in the longest possible reference, and in the longest message."""


class Output:
    """One job's response: at most ``limit`` bytes, with an envelope for each of ``items`` items.

    For every item to come it keeps room for a failure and, with a ``bucket``, for a reference; of a job with very many
    items, for the shortest failure only. Raises ``Refused`` if not even that fits. ``bare``: the body has the result of
    the one item by itself, without an envelope and a list around it.
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
        bare: bool = False,
    ) -> None:
        self.size = BODY - SEPARATOR  # there is none before the first envelope
        self.bare = bare
        """Whether the answer is the only item's result as it is, without an envelope."""
        self.in_parts = False
        """Whether the stream has had parts of an item."""
        self._refresh_worker = False
        self.failing_since: float | None = None
        """When the platform began not to take the job's chunks, in seconds of ``time.monotonic``."""
        self._job_id = job_id
        self._items = self._left = items
        self._limit = limit
        self._bucket = bucket
        self._inline_file_bytes = inline_file_bytes
        self._around = SEPARATOR + (CHUNK_BRACKETS if chunked else 0)
        for size, named in self._reserves(first_index + items):
            self._reserve, self._named = size + self._around, named
            if self.size + STOP_POD + items * self._reserve <= limit:
                return
        raise Refused(f"{items} items do not fit in a response of {limit:,} bytes: send fewer items per job.")

    @property
    def refresh_worker(self) -> bool:
        """Whether an item asks for a new worker after the job.

        Once room has been given to the last item, no more can ask: an outcome that comes then is a second one.
        """
        return self._refresh_worker

    @refresh_worker.setter
    def refresh_worker(self, asked: bool) -> None:
        if self._left:
            self._refresh_worker = asked

    def _reserves(self, last: int) -> Iterator[tuple[int, bool]]:
        """Yield the bytes to keep for each item, and whether a failure in them can have a message; the best first."""
        cases = product(("result", "failure"), (True, False))
        full = _failure_bytes(last, max((self._full(kind, MOST_BYTES, alone=alone) for kind, alone in cases), key=len))
        if self._bucket:
            yield max(self._reference(self._bucket, last, MOST_BYTES), full), True
        yield full, True
        yield _failure_bytes(last, ""), False  # just the type

    def admit(self, outcome: Outcome) -> Outcome | Callable[[], Outcome]:
        """Take room in the response for the next item, in input order.

        Return the outcome, or a function that uploads the result and returns a reference; run it in a thread. If
        neither the result nor a reference fits, the outcome is a short failure.
        """
        self._left -= 1
        too_large_to_stream = self._bucket and outcome.result and outcome.size > CHUNK_BYTES
        if not too_large_to_stream and self._claim(self._sent(outcome)):
            return outcome
        if self._bucket and outcome.result:
            body = outcome.result
            if self._claim(size := self._reference(self._bucket, outcome.index, len(body))):
                return partial(self._store, self._bucket, outcome.index, body, size)
        short = failure(outcome.index, TOO_LARGE, self._why(outcome) if self._named else "")
        self._claim(short.size)
        return short

    def seal(self, index: int, pieces: Sequence[bytes]) -> Outcome:
        """Return the outcome of a result with files in it; store the large ones, if there is a bucket. Blocks."""

        def store(content: bytes, content_type: str, name: str) -> str | None:
            if not self._bucket or len(content) <= self._inline_file_bytes:
                return None
            name = f"{index}-{name}"
            return self._bucket.store(f"{self._job_id}/{name}", content, content_type, name)

        try:
            return success_with_files(index, pieces, store)
        except NotStored as error:
            log.error(f"Item {index}: {error}", self._job_id)
            return failure(index, "NotStored", str(error))

    def shrink(self, outcomes: list[Outcome], spare: int) -> list[Outcome] | None:
        """Return ``outcomes`` with the largest results stored or turned into failures, to save ``spare`` bytes.

        None if no byte can be saved. Blocks while it stores.
        """
        smaller = list(outcomes)
        left = spare
        for place in sorted(range(len(outcomes)), key=lambda place: -outcomes[place].size):
            outcome = outcomes[place]
            if left <= 0:
                break
            if not outcome.result:
                continue
            why = f"and the platform refused a response of {self.size:,}"
            why = self._says("result", len(outcome.result), why, alone=self._items == 1)
            short = failure(outcome.index, TOO_LARGE, why)
            if self._bucket and self._reference(self._bucket, outcome.index, MOST_BYTES) < outcome.size:
                short = self._store(self._bucket, outcome.index, outcome.result, outcome.size)
            if short.size < outcome.size:
                smaller[place] = short
                left -= outcome.size - short.size
        return smaller if left < spare else None

    def _claim(self, size: int) -> bool:
        """Take room for an envelope of ``size`` bytes; False if that would leave too little for the items to come.

        As long as there are any, one of them may ask for a new worker, which takes room, too.
        """
        asking = STOP_POD if self._left or self.refresh_worker else 0
        if self.size + size + self._around + asking + self._left * self._reserve > self._limit:
            return False
        self.size += size + self._around
        return True

    def _sent(self, outcome: Outcome) -> int:
        """Return the bytes that ``outcome`` adds to a body without any: a bare one is the body, but for its braces."""
        return len(outcome.bare) + len("{}") - BODY if self.bare else outcome.size

    def _why(self, outcome: Outcome) -> str:
        """Return what to say of an outcome for which there is no room."""
        kind, size = ("result", len(outcome.result)) if outcome.result else ("failure", outcome.size)
        return self._full(kind, size, alone=self._items == 1 or BODY + outcome.size > self._limit)

    def _full(self, kind: str, size: int, *, alone: bool) -> str:
        room = "a response" if alone else "what is left of a response"
        return self._says(kind, size, f"too many for {room} of {self._limit:,}", alone=alone)

    def _says(self, kind: str, size: int, why: str, *, alone: bool) -> str:
        helps = "return less" if alone else "send fewer items per job"
        if kind == "result" and not self._bucket:
            helps += ", or give the worker a bucket"
        return f"The {kind} has {size:,} bytes, {why}: {helps}."

    def _reference(self, bucket: Bucket, index: int, size: int) -> int:
        """Return how long the reference to a result of ``size`` bytes can be."""
        return reference(index, "x" * bucket.url_bytes(self._key(index)), size).size

    def _store(self, bucket: Bucket, index: int, body: bytes, most: int) -> Outcome:
        try:
            return reference(index, bucket.store(self._key(index), body), len(body))
        except NotStored as error:
            log.error(f"Item {index}: {error}", self._job_id)
            outcome = failure(index, "NotStored", str(error))
            return outcome if outcome.size <= most else failure(index, "NotStored", "")

    def _key(self, index: int) -> str:
        return f"{self._job_id}/{index}.json"


@lru_cache(maxsize=64)
def _failure_bytes(index: int, message: str) -> int:
    return failure(index, TOO_LARGE, message).size
