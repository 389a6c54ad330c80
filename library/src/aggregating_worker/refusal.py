"""The sentence that says what a person got wrong, and what to change."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

FAULTS_NAMED = 3
MAX_CHARACTERS = 1_000

_read = json.JSONDecoder().raw_decode


class Refused(Exception):
    """A job, a setting or an argument cannot be used; the text is a sentence for whoever gave it."""


def sendable(text: str, limit: int) -> str:
    """Return ``text`` cut to ``limit`` characters, with lone surrogates escaped: UTF-8 cannot carry them."""
    return text[:limit].encode("utf-8", "backslashreplace").decode("utf-8")[:limit]


def faults(error: "ValidationError", name: Callable[[str], str] = str) -> str:
    """Name the first few faults in ``error``; ``name`` turns a field's name into the one its author used."""
    text, end, count = error.json(include_url=False, include_context=False, include_input=False), 0, error.error_count()
    named = []
    for _ in range(min(count, FAULTS_NAMED)):  # a union has them by the dozen: the others are not read
        fault, end = _read(text, end + len("["))  # or the comma after the one before
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"])
        field = name(path.removeprefix("."))
        match fault["type"]:
            case "extra_forbidden":
                named.append(f"there is no field {field}")
            case "missing":
                named.append(f"{field} is missing")
            case _:
                message = fault["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
                message = message.replace("Input should be", "should be")
                named.append(f"{field} {message}" if field else message)
    if count > FAULTS_NAMED:
        named.append(f"and {count - FAULTS_NAMED} more")
    return sendable("; ".join(named), MAX_CHARACTERS)
