"""A JSON Lines file of items. Each item is read again when it is sent, so that a list may be larger than memory."""

import hashlib
from array import array
from typing import BinaryIO

from aggregating_worker.client.envelopes import parse
from aggregating_worker.client.http import CallFailed


class Items:
    """The items in ``file``, one JSON value per line; blank lines do not count.

    ``file`` must be seekable and stay open. All of it is checked here: raises ``CallFailed``, which names the line, if
    one is not JSON or has more than ``limit`` bytes, which is the room in one job.
    """

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file = file
        self._starts = array("Q")
        self._sizes = array("Q")
        digest = hashlib.sha256()
        start = 0
        for number, line in enumerate(file, 1):
            if item := line.strip():
                if len(item) > limit:
                    raise CallFailed(f"Line {number} of the items has {len(item)} bytes: a job has room for {limit}.")
                try:
                    parse(item)
                except ValueError as error:
                    raise CallFailed(f"Line {number} of the items is not one JSON value: {error}.") from None
                self._starts.append(start + line.index(item))
                self._sizes.append(len(item))
                digest.update(item + b"\n")
            start += len(line)
        self.digest = digest.hexdigest()
        """Equal for two files if they have the same items."""

    def __len__(self) -> int:
        return len(self._starts)

    def size(self, index: int) -> int:
        """Return how many bytes an item has."""
        return self._sizes[index]

    def __getitem__(self, index: int) -> bytes:
        self._file.seek(self._starts[index])
        return self._file.read(self._sizes[index])
