"""A JSON Lines file of items. Each item is read again when it is sent, so that a list may be larger than memory."""

from array import array
from collections import Counter
from collections.abc import Iterable
from hashlib import blake2b
from typing import BinaryIO

from aggregating_worker.client.envelopes import parse

KEY = 12
"""Bytes of a key: among a billion items, no two have the same by chance."""
NAMED = 100
"""Ranges of lines that a sentence names at most."""


class Items:
    """The items in ``file``, one JSON value per line; blank lines do not count.

    ``file`` must be seekable and stay open. ``faults`` says what is wrong with a line that is not JSON or has more than
    ``limit`` bytes, which is the room in one job. If items are ``placed``, the same item in another place is another.
    """

    def __init__(self, file: BinaryIO, limit: int, *, placed: bool = False) -> None:
        self.faults: dict[int, str] = {}
        self._file = file
        self._starts = array("Q")
        self._sizes = array("Q")
        self._lines = array("Q")
        self._keys = bytearray()
        seen = Counter[bytes]()
        start = 0
        for number, line in enumerate(file, 1):
            if item := line.strip():
                index = len(self)
                if fault := _fault(item, limit):
                    self.faults[index] = fault
                content = blake2b(item, digest_size=KEY).digest()
                which = index if placed else seen[content]
                seen[content] += 1
                self._keys += blake2b(content + b"%d" % which, digest_size=KEY).digest()
                self._starts.append(start + line.index(item))
                self._sizes.append(len(item))
                self._lines.append(number)
            start += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def size(self, index: int) -> int:
        """Return how many bytes an item has."""
        return self._sizes[index]

    def key(self, index: int) -> str:
        """Return what an item is known by: its content, and for equal items the how manyth of them it is."""
        return self._keys[index * KEY : (index + 1) * KEY].hex()

    def line(self, index: int) -> int:
        """Return the number of an item's line in the file, from 1."""
        return self._lines[index]

    def named(self, indices: Iterable[int]) -> str:
        """Return the items' lines for a sentence: ``line 7``, or ``lines 3-40, 77``."""
        ranges: list[list[int]] = []
        for index in sorted(indices):
            if ranges and ranges[-1][1] == index - 1:
                ranges[-1][1] = index
            else:
                ranges.append([index, index])
        lines = [(self.line(first), self.line(last)) for first, last in ranges]
        words = [str(first) if first == last else f"{first}-{last}" for first, last in lines]
        more = f" and {len(words) - NAMED} more ranges" if len(words) > NAMED else ""
        one = len(lines) == 1 and lines[0][0] == lines[0][1]
        return f"{'line' if one else 'lines'} {', '.join(words[:NAMED])}{more}"

    def __getitem__(self, index: int) -> bytes:
        self._file.seek(self._starts[index])
        return self._file.read(self._sizes[index])


def _fault(item: bytes, limit: int) -> str | None:
    if len(item) > limit:
        return f"the line has {len(item)} bytes, and a job has room for {limit}"
    try:
        parse(item)
    except ValueError as error:
        return f"the line is not one JSON value: {error}"
    return None
