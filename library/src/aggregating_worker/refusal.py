"""The sentence that says what a person got wrong, and what to change."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import ValidationError

FAULTS_NAMED = 3
MAX_CHARACTERS = 1_000

_read = json.JSONDecoder().raw_decode


class Refused(Exception):
    """A job, a setting or an argument cannot be used; the text is a sentence for whoever gave it."""


def sendable(text: str, limit: int) -> str:
    """Return ``text`` cut to ``limit`` characters, with lone surrogates escaped: UTF-8 cannot carry them."""
    return text[:limit].encode("utf-8", "backslashreplace").decode("utf-8")[:limit]


def faults(error: ValidationError, name: Callable[[str], str] = str) -> str:
    """Name the first few faults in ``error``; ``name`` turns a field's name into the one its author used."""
    return said(first_faults(error), error.error_count(), name)


def first_faults(error: ValidationError) -> list[Any]:
    """Return the first few faults in ``error``: a union has them by the dozen, and the others are not read."""
    text, end, found = error.json(include_url=False, include_context=False, include_input=False), 0, []
    for _ in range(min(error.error_count(), FAULTS_NAMED)):
        fault, end = _read(text, end + len("["))  # or the comma after the one before
        found.append(fault)
    return found


def said(found: Sequence[Any], count: int, name: Callable[[str], str] = str, *, within: int = 0) -> str:
    """Name the faults that are ``found``, of so many; fields by their path from the value that is ``within`` others."""
    named = []
    for fault in found:
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"][within:])
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
    if count > len(found):
        named.append(f"and {count - len(found)} more")
    return sendable("; ".join(named), MAX_CHARACTERS)
