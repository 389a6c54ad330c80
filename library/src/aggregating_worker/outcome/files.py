"""Files in a result: bytes, a path, a Pillow image. Each goes inline as base64, or to the bucket under its own URL."""

import base64
import io
import json
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from aggregating_worker.outcome.kind import kind_of
from aggregating_worker.outcome.picture import NotAFile, Picture

Store = Callable[[bytes, str, str], str | None]
"""Stores a file, given its content, content type and name, and returns its URL; None if it is to go inline."""


class File:
    """A file in a result: ``content`` is what the task returned; after ``take`` and ``encode``, it is bytes."""

    def __init__(self, content: Any) -> None:
        self.content = content
        self.name = ""

    def take(self) -> None:
        """Copy the content, before the task can use the same path or buffer for its next item.

        Raises ``NotAFile``; blocks.
        """
        if isinstance(self.content, Path):
            try:
                if not stat.S_ISREG(self.content.stat().st_mode):  # a pipe or a device may have no end
                    raise NotAFile(f"{self.content} cannot be returned as a file: it is not a regular one.")
                self.name, self.content = self.content.name, self.content.read_bytes()
            except OSError as error:
                raise NotAFile(f"{self.content} cannot be returned as a file: {error.strerror}.") from None
        elif isinstance(self.content, io.BytesIO):
            self.content = self.content.getvalue()
        elif isinstance(self.content, bytearray | memoryview):
            self.content = bytes(self.content)
        elif not isinstance(self.content, bytes):
            self.content = Picture(self.content)

    def encode(self) -> None:
        """Encode an image. Raises ``NotAFile``; blocks."""
        if isinstance(self.content, Picture):
            self.content, self.name = self.content.encode()

    def kind(self) -> tuple[str, str]:
        """Return its content type and extension, told by its content or else by its name."""
        return kind_of(self.content, self.name)


@dataclass(eq=False)
class Unencoded:
    """A result with files in it: in ``value``, a ``File`` stands for each of them."""

    value: Any
    files: list[File]

    def take(self) -> None:
        """Copy the files. Raises ``NotAFile``; blocks."""
        for file in self.files:
            file.take()

    def encode(self, to_json: Callable[[Any, Callable[[Any], Any]], bytes]) -> list[bytes]:
        """Return the pieces of which ``joined`` makes a text. Raises ``NotAFile`` and what ``to_json`` raises; blocks.

        They are a mark, the result as JSON, and the type, the extension and the content of each file: where it belongs,
        the JSON has the mark and a number.
        """
        mark = f"file-{uuid4().hex}-"
        pieces = []
        for file in self.files:
            file.encode()
            pieces += [*map(str.encode, file.kind()), file.content]
        numbers = {file: f"{mark}{number}-" for number, file in enumerate(self.files)}
        return [mark.encode(), to_json(self.value, numbers.__getitem__), *pieces]


def joined(pieces: Sequence[bytes], store: Store) -> tuple[bytes, bool]:
    """Return the JSON of a result with files, each offered to ``store``, and whether one was stored. Blocks.

    The files' base64 is put into the JSON last: encoded with the rest, a large file would be in memory several times
    over. Raises what ``store`` raises.
    """
    mark, text, *files = pieces
    first, *others = text.split(b'"' + mark)
    joining, stored = [first], False
    for other in others:
        number, _, rest = other.partition(b'-"')
        content_type, extension, content = files[3 * int(number) : 3 * int(number) + 3]
        body = {"content_type": content_type.decode(), "bytes": len(content)}
        if url := store(content, content_type.decode(), f"{int(number)}.{extension.decode()}"):
            stored = True
            joining += [json.dumps({**body, "url": url}, ensure_ascii=False).encode(), rest]
        else:
            joining += [json.dumps(body).encode()[:-1], b', "data": "', base64.b64encode(content), b'"}', rest]
    return b"".join(joining), stored
