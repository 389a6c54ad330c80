"""Pillow images in a result: each becomes a file that holds all that is in it, and an animation all of its frames."""

import hashlib
import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

HOLDS = {
    "AVIF": {"RGB", "RGBA"},
    "JPEG": {"L", "RGB", "RGBX", "CMYK", "YCbCr"},
    "MPO": {"L", "RGB", "RGBX", "CMYK", "YCbCr"},
    "PNG": {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"},
    "TIFF": {"1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "F", "CMYK", "LAB", "YCbCr"},
    "WEBP": {"RGB", "RGBA"},
}
"""The modes that these hold, but for what the lossy ones leave out. What others hold is seen when it is read again."""
TURNED_BY_READERS = {"AVIF", "JPEG", "MPO", "PNG", "WEBP"}
"""Formats in which readers heed the orientation in EXIF data."""
KEPT = ("icc_profile", "dpi", "exif", "loop")
VALUES = {"I", "F", "CMYK", "LAB", "YCbCr"}
"""Modes that are compared by their values, and not as colours."""
CLOSED = "its file is closed: call load() on it, or return a copy, inside the with"

_seeking = threading.Lock()
"""Held by the thread that goes through the frames of an image, which other items may return, too."""


class NotAFile(Exception):
    """A path or an image in a result cannot be sent as a file."""


class Picture:
    """A copy of an image: its frames, and the format that it was read from. Raises ``NotAFile``; blocks."""

    def __init__(self, image: "Image") -> None:
        self._format = (image.format or "PNG").upper()
        self._what = f"an image of {image.width} × {image.height}, mode {image.mode}"
        try:
            with _seeking:
                self._frames = _frames(image)
        except Exception as error:
            closed = getattr(getattr(image, "fp", None), "closed", True) and not isinstance(error, OSError)
            raise NotAFile(f"{self._what}, could not be read: {CLOSED if closed else error}.") from error

    def encode(self) -> tuple[bytes, str]:
        """Return it as a file, and a name for that, in its own format, if that can hold it, else as PNG or TIFF.

        What neither can hold, such as HSV, is RGB or RGBA in them. Raises ``NotAFile``; blocks.
        """
        frames = self._frames
        turned_by_readers = self._format in TURNED_BY_READERS and "exif" in frames[0].info
        why: Exception | None = None
        for image_format, prepare in (
            (self._format, None if turned_by_readers else _turned),
            ("PNG", _turned),
            ("TIFF", _turned),
            ("PNG", _plain),
            ("TIFF", _plain),
        ):
            try:
                frames = [*map(prepare, frames)] if prepare else frames
                content = _saved(frames, image_format)
                if _is_held(frames, image_format) or _looks(_read(content)) == _looks(frames):
                    return content, f"image.{image_format.lower()}"
                why = why or ValueError("it would lose a part of it")
            except Exception as error:  # the format's limits, or Pillow does not write it
                why = why or error
        raise NotAFile(f"{self._what}, could not be encoded as {self._format}: {why}.") from why


def _frames(image: "Image") -> "list[Image]":
    """Return copies of all frames, or of the one that is shown: if there are no others, or the task has drawn on it."""
    from PIL.ImageFile import ImageFile

    shown = image.copy()
    try:
        count = getattr(image, "n_frames", 1)
    except Exception:  # the file is closed
        count = 1
    if count == 1 or not isinstance(image, ImageFile) or image.format == "PSD":  # its others are layers
        return [shown]
    with suppress(Exception):  # the file is closed, or its frames do not go with what the task has drawn
        if here := image.tell():  # Pillow goes back from the last one only, in PNG
            image.seek(count - 1)
            image.load()
        frames = []
        for number in range(count):
            image.seek(number)
            frames.append(image.copy())
        image.seek(here)
        if _look(image) == _look(shown):
            return frames
    ImageFile.__setstate__(image, shown.copy().__getstate__())  # as it was, for whoever has it
    return [shown]


def _saved(frames: "Sequence[Image]", image_format: str) -> bytes:
    first, *others = frames
    options: dict[str, Any] = {name: first.info[name] for name in KEPT if first.info.get(name) is not None}
    if image_format == "TIFF":  # it may have been read with another, which changes the values
        options["compression"] = "raw" if first.mode == "YCbCr" else "tiff_adobe_deflate"
    if others and (image_format == "TIFF" or len(_looks(frames)) > 1):  # all pages, but one frame of the same ones
        options |= {"save_all": True, "append_images": others}
        if not first.info.get("default_image"):  # of PNG: it is none of the frames
            options["duration"] = [frame.info.get("duration", 0) for frame in frames]
        if image_format == "GIF":  # each frame is whole: the one before must not show through
            options["disposal"] = [2 if frame.has_transparency_data else 0 for frame in frames]
        if image_format == "PNG":
            options |= {"disposal": 0, "blend": 0}
    buffer = io.BytesIO()
    first.save(buffer, image_format, **options)
    return buffer.getvalue()


def _is_held(frames: "Sequence[Image]", image_format: str) -> bool:
    """Whether the format is known to hold the frames; what makes colours transparent, only alpha is known to be."""
    return all(
        frame.mode in HOLDS.get(image_format, ())
        and (frame.mode.endswith("A") or not frame.has_transparency_data)
        and (image_format != "PNG" or len(frames) == 1)
        for frame in frames
    )


def _looks(frames: "Sequence[Image] | Iterator[Image]") -> list[tuple[object, ...]]:
    """Return what can be seen in the frames; one that repeats the one before is left out, as most formats do."""
    looks: list[tuple[object, ...]] = []
    for frame in frames:
        if (look := _look(frame)) not in looks[-1:]:
            looks.append(look)
    return looks


def _look(frame: "Image") -> tuple[object, ...]:
    if frame.mode.startswith("I;16"):
        frame = frame.convert("I")
    elif frame.mode not in VALUES:
        # Of a copy, since it changes a palette (Pillow 13); what is transparent has no colour.
        frame = frame.copy().convert("RGBA").convert("RGBa")
    return frame.mode, frame.size, hashlib.blake2b(frame.tobytes()).digest()


def _read(content: bytes) -> "Iterator[Image]":
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            yield image


def _turned(frame: "Image") -> "Image":
    from PIL import ImageOps

    return ImageOps.exif_transpose(frame)


def _plain(frame: "Image") -> "Image":
    if frame.mode in VALUES:
        return frame
    if frame.mode.startswith("I;16"):
        return frame.convert("I")
    return frame.convert("LA" if frame.mode == "La" else "RGBA" if frame.has_transparency_data else "RGB")
