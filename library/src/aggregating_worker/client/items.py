"""A JSON Lines file of items, each read again when it is sent: a list may be larger than memory."""

import hashlib
from array import array
from typing import BinaryIO

from aggregating_worker.client.envelopes import parse
from aggregating_worker.client.http import CallFailed


class Items:
    """The items in ``file``, one JSON value a line; blank lines do not count.

    ``file`` must stay open, and be able to seek. All of it is checked here: raises ``CallFailed``, naming the line, if
    one is not JSON or is larger than ``limit`` bytes, which is what one job can carry.
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
                    raise CallFailed(f"Line {number} of the items has {len(item)} bytes: a job can carry {limit}.")
                try:
                    parse(item)
                except ValueError as error:
                    raise CallFailed(f"Line {number} of the items is not JSON, one item a line: {error}.") from None
                self._starts.append(start + line.index(item))
                self._sizes.append(len(item))
                digest.update(item + b"\n")
            start += len(line)
        self.digest = digest.hexdigest()
        """Tells whether two files have the same items."""

    def __len__(self) -> int:
        return len(self._starts)

    def size(self, index: int) -> int:
        """Return the bytes of an item."""
        return self._sizes[index]

    def __getitem__(self, index: int) -> bytes:
        self._file.seek(self._starts[index])
        return self._file.read(self._sizes[index])
