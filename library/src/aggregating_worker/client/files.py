"""The files in a result: finds them at any depth, saves them to a folder, and shortens their data for a terminal."""

import asyncio
import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from aggregating_worker.client.envelopes import Envelope, encode, failure, parse
from aggregating_worker.client.http import CallFailed, Http
from aggregating_worker.outcome.kind import EXTENSION, extension_of
from aggregating_worker.sentence import counted

SHOWN = 40
"""Characters of a file's data that a terminal shows."""
LARGEST = 5 * 10**9
"""Bytes of a file at most: the limit of one upload to S3."""
STORED = re.compile(rf"/[0-9]+-[0-9]+\.({EXTENSION.pattern})(\?|$)")
"""How the URL of a file ends that a worker has stored, but for a signature."""


def files_of(result: Any) -> list[dict[str, Any]]:
    """Return the files in ``result``, in their order there; they are not copies, so changing one changes the result.

    A file is ``{"content_type": …, "bytes": …}`` with ``data``, which is base64, or with ``url``.
    """
    found, left = list[dict[str, Any]](), [result]
    while left:
        match left.pop():
            case {"content_type": str(), "bytes": int(), "data": str()} | {
                "content_type": str(),
                "bytes": int(),
                "url": str(),
            } as file if len(file) == 3:
                found.append(file)
            case dict(fields):
                left += reversed(fields.values())
            case list(elements):
                left += reversed(elements)
    return found


async def save(envelope: Envelope, folder: Path, bucket: Http) -> Envelope:
    """Write each file of ``envelope`` to ``folder/INDEX-N.EXT``, and put that ``path`` in place of its data or URL.

    If a file cannot be fetched or decoded, return a failure ``ResultUnavailable``. Raises ``OSError`` if one cannot be
    written.
    """
    for number, file in enumerate(files_of(envelope.get("result"))):
        path = folder / name_of(envelope["index"], number, file["content_type"], file.get("url", ""))
        try:
            with _whole(path) as target:
                if file["bytes"] > LARGEST:
                    raise CallFailed(f"It has {file['bytes']} bytes, and at most {LARGEST} are saved.")
                if "url" in file:
                    await bucket.save(file["url"], file["bytes"], target)
                else:
                    await asyncio.to_thread(_decode, file["data"], file["bytes"], target)
        except CallFailed as error:
            message = f"File {number} of the result could not be saved. {error}"
            return failure(envelope["index"], "ResultUnavailable", message)
        del file["url" if "url" in file else "data"]
        file["path"] = str(path)
    return envelope


def name_of(index: int, number: int, content_type: str, url: str = "") -> str:
    """Return the name of an item's file, which is that in the bucket, if it is there.

    Else its extension is the type's usual one. No other text from the result is in it.
    """
    stored = STORED.search(url)
    return f"{index}-{number}.{stored[1] if stored else extension_of(content_type)}"


def shortened(envelope: Envelope) -> Envelope:
    """Return ``envelope`` with only the beginning and the size of its files' data."""
    shorter: Envelope = parse(encode(envelope))
    for file in files_of(shorter.get("result")):
        if len(file.get("data", "")) > SHOWN:
            file["data"] = f"{file['data'][:SHOWN]}… ({file['bytes']} bytes)"
    return shorter


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write to, which appears at ``path`` only once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        with unfinished.open("wb") as file:
            yield file
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _decode(data: str, size: int, target: BinaryIO) -> None:
    try:
        content = base64.b64decode(data, validate=True)
    except ValueError:
        raise CallFailed("Its data is not base64.") from None
    if len(content) != size:
        raise CallFailed(f"It has {len(content)} of {counted(size, 'byte')}.")
    target.write(content)
