"""What kind of file something is, and the extension that its name has: in the bucket, and where a caller saves it."""

import re
from mimetypes import MimeTypes
from pathlib import PurePath

import filetype

UNKNOWN = "application/octet-stream"
EXTENSION = re.compile("[a-z0-9]{1,12}")
"""What an extension may look like; ``safetensors`` has eleven characters."""
USUAL = {kind.mime: kind.extension.lower() for kind in reversed(filetype.TYPES) if kind.mime != UNKNOWN}
TYPES = MimeTypes()
"""Python's own, without the system's: they are the same wherever this runs."""
for _extension in ("flac", "ogg", "wav"):  # Python has older names for these types, or none
    TYPES.add_type(f"audio/{_extension}", f".{_extension}")


def kind_of(content: bytes, name: str) -> tuple[str, str]:
    """Return the content type and the extension of a file, told by its content or else by its ``name``."""
    if found := filetype.guess(content):
        return found.mime, found.extension.lower()
    own = PurePath(name).suffix[1:].lower()
    if not EXTENSION.fullmatch(own):
        return UNKNOWN, "bin"
    named, packed = TYPES.guess_type(f"file.{own}", strict=False)
    return (UNKNOWN if packed else named) or UNKNOWN, own


def extension_of(content_type: str) -> str:
    """Return the usual extension for a type, or ``bin``."""
    bare = content_type.partition(";")[0].strip().lower()
    return USUAL.get(bare) or (TYPES.guess_extension(bare, strict=False) or ".bin")[1:]
