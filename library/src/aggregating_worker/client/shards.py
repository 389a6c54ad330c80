"""Cuts a long list into jobs, by the number of items and by bytes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from aggregating_worker.client.envelopes import encode
from aggregating_worker.client.http import CallFailed
from aggregating_worker.client.job import Job

MAX_BODY = 10_000_000
"""Bytes of a request to ``/run`` (Runpod docs, serverless/endpoints/operation-reference)."""

MAX_INDEX = 2**53
"""Larger than any index."""


class Frame:
    """A job without its items; they are put in as the bytes in their file, of which ``room`` fit.

    ``field`` is the task's name for them. Raises ``CallFailed`` if ``job`` is not a request, or leaves no room.
    """

    def __init__(self, job: Job, field: str = "items") -> None:
        options = job.get("input")
        if not isinstance(options, Mapping):
            raise CallFailed('The job should be an object with an input: {"input": {…}}.')
        around = _members({key: value for key, value in job.items() if key != "input"})
        beside = _members({key: value for key, value in options.items() if key not in (field, "first_index")})
        self._items = encode(field) + b": ["
        self._head = b"{" + around + b'"input": {' + beside
        self.room = MAX_BODY - len(self.body([], MAX_INDEX))
        if self.room < 1:
            raise CallFailed(f"The job leaves no room for items: a request has at most {MAX_BODY} bytes.")

    def body(self, items: Sequence[bytes], first_index: int | None = None) -> bytes:
        """Return the request with ``items``, which are JSON, and with ``first_index`` unless that is None."""
        numbered = b"" if first_index is None else b'"first_index": %d, ' % first_index
        return self._head + numbered + self._items + b",".join(items) + b"]}}"


def cut(indices: Iterable[int], size: Callable[[int], int], most: Callable[[], int], room: int) -> Iterator[list[int]]:
    """Yield ``indices`` in lists of at most ``most()``, asked again for each, whose items fit into ``room`` bytes.

    ``size(index)`` is an item's bytes, at most ``room``; the commas between items count too.
    """
    shard: list[int] = []
    used = 0
    for index in indices:
        if shard and (len(shard) >= most() or used + size(index) > room):
            yield shard
            shard, used = [], 0
        shard.append(index)
        used += size(index) + len(",")
    if shard:
        yield shard


def _members(fields: Mapping[str, object]) -> bytes:
    return encode(fields)[1:-1] + b", " if fields else b""
