"""What messages to a person need: foreign text on one line, counted things, and the page where an API key is made."""

import re

KEYS = "https://console.runpod.io/user/settings"


OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""What a terminal obeys, but for tab and line feed: control characters, and what turns the direction of writing."""


def printable(text: str) -> str:
    """Return ``text`` for a terminal, with escapes as in JSON for what that would obey."""
    return OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    """Return ``text`` on one line of at most 500 characters, without control characters that a terminal would obey."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:500].rstrip(".")


def reason(kind: str, message: str) -> str:
    """Return ``KIND: message``, or the kind alone where an exception has no message."""
    return f"{kind}: {message}" if message else kind


def counted(number: int, noun: str) -> str:
    """Return ``1 item`` or ``2 items``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
