"""Checks the envelopes that arrive: they must be strict JSON, and exactly one for each item."""

import json
import math
from collections.abc import Iterator
from typing import Any, NoReturn, NotRequired, TypedDict, TypeGuard

OUTCOMES = ("result", "result_url", "failure")
"""An envelope has one of these."""


class Failure(TypedDict):
    """Why an item has no result."""

    type: str
    message: str
    details: NotRequired[Any]


class Envelope(TypedDict):
    """One item's outcome: a ``result`` if ``success``, else a ``failure``; ``index`` is its place in the list."""

    index: int
    success: bool
    result: NotRequired[Any]
    result_url: NotRequired[str]
    failure: NotRequired[Failure]


class Parts(TypedDict):
    """What an item has yielded since its last ``Parts``; its envelope comes later and has all of it."""

    index: int
    parts: list[Any]


def failure(index: int, kind: str, message: str) -> Envelope:
    """Return the envelope of an item without a result."""
    return {"index": index, "success": False, "failure": {"type": kind, "message": message}}


def flatten(chunks: list[Any]) -> Iterator[Any]:
    """Yield what is in the chunks: each is an envelope, or with ``CHUNK_SIZE`` over 1 a list of them."""
    for chunk in chunks:
        if isinstance(chunk, list):
            yield from chunk
        else:
            yield chunk


def is_envelope(value: Any) -> TypeGuard[Envelope]:
    """Whether ``value`` is an envelope as this library's worker sends it."""
    match value:
        case {"index": int(index), "success": bool(success)} if index >= 0 and type(index) is int:
            match success, [(name, value[name]) for name in OUTCOMES if name in value]:
                case (True, [("result", _) | ("result_url", str())]) | (
                    False,
                    [("failure", {"type": str(), "message": str()})],
                ):
                    return True
    return False


def is_parts(value: Any) -> TypeGuard[Parts]:
    """Whether ``value`` is parts of an item; they are in the stream only."""
    match value:
        case {"index": int(index), "parts": list()}:
            return index >= 0 and type(index) is int and len(value) == 2
    return False


def aggregate(output: Any, items: int | None, first: int | None = 0) -> list[Envelope]:
    """Return a job's output as one list; raise ``ValueError`` unless it has an envelope for each item, in order.

    ``items`` is how many the job had, or None if that is not known; ``first`` is the index of its first item, or None
    if it may be any. Parts are left out: another library's worker may have them there too.
    """
    envelopes = [each for each in flatten(output if isinstance(output, list) else [output]) if not is_parts(each)]
    if not all(is_envelope(envelope) for envelope in envelopes):
        raise ValueError("it returned something other than this worker's envelopes")
    if first is None:
        first = envelopes[0]["index"] if envelopes else 0
    places = range(first, first + (len(envelopes) if items is None else items))
    if [envelope["index"] for envelope in envelopes] != list(places):
        raise ValueError("it did not return one envelope for each item")
    return envelopes


def parse(content: bytes) -> Any:
    """Return the JSON value in UTF-8 ``content``; raise ``ValueError`` with the reason if it is not JSON."""
    try:
        return json.loads(content.decode("utf-8"), parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def encode(value: Any) -> bytes:
    """Return ``value`` as UTF-8 JSON, lone surrogates escaped; raise ``ValueError`` or ``TypeError`` if impossible."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False).encode("ascii")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text} is out of range")
    return number
