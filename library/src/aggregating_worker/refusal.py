"""What a person got wrong, in one sentence that says what to change."""

from collections.abc import Callable

from pydantic import ValidationError

FAULTS_NAMED = 3
MAX_CHARACTERS = 1_000


class Refused(Exception):
    """A job, a setting or an argument that cannot be used; its text is a sentence for whoever sent it."""


def sendable(text: str, limit: int) -> str:
    """Return ``text`` cut to ``limit`` characters, with what UTF-8 cannot carry (lone surrogates) escaped."""
    return str.__getitem__(text, slice(limit)).encode("utf-8", "backslashreplace").decode("utf-8")[:limit]


def faults(error: ValidationError, name: Callable[[str], str] = str) -> str:
    """Name the first few faults in ``error``; ``name`` spells a field as its author knows it."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    named = []
    for fault in found[:FAULTS_NAMED]:
        place = name("".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"])[1:])
        match fault["type"]:
            case "extra_forbidden":
                named.append(f"there is no field {place}")
            case "missing":
                named.append(f"{place} is missing")
            case _:
                message = fault["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
                message = message.replace("Input should be", "should be")
                named.append(f"{place} {message}" if place else message)
    if len(found) > FAULTS_NAMED:
        named.append(f"and {len(found) - FAULTS_NAMED} more")
    return sendable("; ".join(named), MAX_CHARACTERS)
