"""Files in a result: bytes, a path, a Pillow image. Inline as base64, or in the bucket under a URL of their own."""

import base64
import dataclasses
import io
import mimetypes
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

import filetype
from pydantic import BaseModel

DEPTH = 255
"""How deep a result is searched: deeper ones are refused by pydantic-core (2.41, ``serializers``)."""
UNKNOWN = "application/octet-stream"
PLAIN = (str, int, float, bool, type(None))

Place = Callable[[bytes, str, str], str | None]
"""Stores a file's content, content type and name, or returns None for one that goes inline."""


class NotAFile(Exception):
    """What stands in a result for a file and is none."""


class File:
    """A file in a result: ``content`` is what the task returned, then bytes, or a Pillow image until it is encoded."""

    def __init__(self, content: Any) -> None:
        self.content = content
        self.name = ""
        self.image_format = ""

    @property
    def words(self) -> str:
        """What it is, for a person."""
        if isinstance(self.content, bytes):
            return f"{self.name or 'a file'} of {len(self.content)} bytes"
        return f"an image of {self.content.width} × {self.content.height}, mode {self.content.mode}"

    def take(self) -> None:
        """Copy it, where the task returned it: what it was made from may be another item's soon. Blocks."""
        if isinstance(self.content, Path):
            try:
                if not stat.S_ISREG(self.content.stat().st_mode):  # a pipe or a device may have no end
                    raise NotAFile(f"{self.content} cannot be returned as a file: it is none.")
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
        """Make bytes of an image. Blocks."""
        if not isinstance(self.content, bytes):
            buffer = io.BytesIO()
            try:
                self.content.save(buffer, self.image_format)
            except Exception as error:
                raise NotAFile(f"{self.words}, could not be encoded as {self.image_format}: {error}.") from error
            self.content = buffer.getvalue()

    def kind(self) -> tuple[str, str]:
        """Return its content type and extension: by its content first, then by its name."""
        if found := filetype.guess(self.content):
            return found.mime, found.extension
        named, _ = mimetypes.guess_type(self.name)
        return named or UNKNOWN, Path(self.name).suffix.removeprefix(".") or "bin"


@dataclass(eq=False)
class Unencoded:
    """A result with files in it: ``value``, with each of ``files`` in its place."""

    value: Any
    files: list[File]
    stored: bool = False
    """Whether one of them went to the bucket."""

    def take(self) -> None:
        """Copy the files. Raises ``NotAFile``; blocks."""
        for file in self.files:
            file.take()

    def encode(self, place: Place, to_json: Callable[[Any, Callable[[Any], Any]], bytes]) -> bytes:
        """Return the result as JSON. Raises ``NotAFile``, what ``place`` raises and what ``to_json`` raises; blocks.

        ``data`` is put into the JSON at the end, so that a large file is not held in form after form.
        """
        mark = f"file-{uuid4().hex}-"
        inline: list[bytes] = []
        bodies = {}
        for number, file in enumerate(self.files):
            file.encode()
            content_type, extension = file.kind()
            body: dict[str, Any] = {"content_type": content_type, "bytes": len(file.content)}
            if url := place(file.content, content_type, f"{number}.{extension}"):
                body["url"] = url
                self.stored = True
            else:
                body["data"] = f"{mark}{len(inline)}-"
                inline.append(base64.b64encode(file.content))
            bodies[file] = body
            file.content = b""
        before, *after = to_json(self.value, bodies.__getitem__).split(mark.encode())
        pieces = (piece.partition(b"-") for piece in after)
        return b"".join(chain([before], *((inline[int(number)], rest) for number, _, rest in pieces)))


def find(value: object) -> Unencoded | None:
    """Return ``value`` with its files found, at any depth of containers, models and dataclasses; None without any."""
    if isinstance(value, PLAIN):  # as most parts of items are
        return None
    files: list[File] = []
    found = _walk(value, files, [])
    return Unencoded(found, files) if files else None


def _walk(value: Any, files: list[File], path: list[int]) -> Any:
    """Return ``value``, copied where there are files in it, with a ``File`` for each."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, bytes | bytearray | memoryview | io.BytesIO | Path) or _is_image(value):
        files.append(File(value))
        return files[-1]
    if len(path) > DEPTH or id(value) in path:  # for the encoder to refuse
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
        if len(files) > before:  # what the model makes of itself decides, and not its fields
            del files[before:]
            walked = _walk(_dumped(value), files, path)
    else:
        walked = value
    path.pop()
    return walked if len(files) > before else value


def _is_image(value: object) -> bool:
    """Whether it is a Pillow image; where nobody has imported Pillow, nothing is."""
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
