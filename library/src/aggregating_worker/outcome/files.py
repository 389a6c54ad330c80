"""Files in a result: bytes, a path, a Pillow image. Each goes inline as base64, or to the bucket under its own URL."""

import base64
import dataclasses
import io
import json
import mimetypes
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

import filetype
from pydantic import BaseModel

DEPTH = 255
"""How deep a result is searched for files; pydantic-core (2.41, ``serializers``) refuses a deeper one."""
UNKNOWN = "application/octet-stream"
PLAIN = (str, int, float, bool, type(None))

Store = Callable[[bytes, str, str], str | None]
"""Stores a file, given its content, content type and name, and returns its URL; None if it is to go inline."""


class NotAFile(Exception):
    """A path or an image in a result cannot be sent as a file."""


class File:
    """A file in a result: ``content`` is what the task returned; after ``take`` and ``encode``, it is bytes."""

    def __init__(self, content: Any) -> None:
        self.content = content
        self.name = ""
        self.image_format = ""

    def take(self) -> None:
        """Copy the content, before the task can use the same path or buffer for its next item. Blocks."""
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
            self.image_format = self.content.format or "PNG"
            self.content = self.content.copy()

    def encode(self) -> None:
        """Encode an image. Blocks."""
        if not isinstance(self.content, bytes):
            buffer = io.BytesIO()
            try:
                self.content.save(buffer, self.image_format)
            except Exception as error:
                image = f"an image of {self.content.width} × {self.content.height}, mode {self.content.mode}"
                raise NotAFile(f"{image}, could not be encoded as {self.image_format}: {error}.") from error
            self.content = buffer.getvalue()

    def kind(self) -> tuple[str, str]:
        """Return its content type and extension, told by its content or else by its name."""
        if found := filetype.guess(self.content):
            return found.mime, found.extension
        named, _ = mimetypes.guess_type(self.name)
        return named or UNKNOWN, Path(self.name).suffix.removeprefix(".") or "bin"


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


def find(value: object) -> Unencoded | None:
    """Find the files in ``value``, at any depth of containers, models and dataclasses; None if there are none."""
    if isinstance(value, PLAIN):  # as most parts of an item are
        return None
    files: list[File] = []
    found = _walk(value, files, [])
    return Unencoded(found, files) if files else None


def _walk(value: Any, files: list[File], path: list[int]) -> Any:
    """Return ``value`` with a ``File`` for each file; what has files in it is copied."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, bytes | bytearray | memoryview | io.BytesIO | Path) or _is_image(value):
        files.append(File(value))
        return files[-1]
    if len(path) > DEPTH or id(value) in path:  # the encoder refuses it
        return value
    path.append(id(value))
    before = len(files)
    if isinstance(value, dict):
        walked: Any = {key: _walk(inner, files, path) for key, inner in value.items()}
    elif isinstance(value, list | tuple | set | frozenset):
        walked = [_walk(inner, files, path) for inner in value]
    elif fields := _fields(value):
        for inner in fields:
            _walk(inner, files, path)
        walked = value
        if len(files) > before:  # send what the model serializes to, not its fields
            del files[before:]
            walked = _walk(_dumped(value), files, path)
    else:
        walked = value
    path.pop()
    return walked if len(files) > before else value


def _is_image(value: object) -> bool:
    """Whether it is a Pillow image. If Pillow has not been imported, nothing is."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


def _fields(value: object) -> Iterator[Any] | None:
    if isinstance(value, BaseModel):
        return chain(vars(value).values(), (value.model_extra or {}).values())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return (getattr(value, field.name) for field in dataclasses.fields(value))
    return None


def _dumped(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(by_alias=True)
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
