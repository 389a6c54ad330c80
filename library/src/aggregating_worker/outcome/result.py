"""One item's outcome as an envelope that is known to be sendable.

The SDK (1.12.0, ``modules/rp_http.py``) encodes what a handler yields with ``json.dumps(…, ensure_ascii=False)`` and
UTF-8. What it cannot encode it drops, and then never sends the job's final result. So each envelope is encoded here
first, where a fault still costs one item only.
"""

import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_jsonable_python

from aggregating_worker.outcome.files import File, Place, Unencoded
from aggregating_worker.refusal import sendable

MAX_KIND = 100
"""Characters of a failure's type."""
MAX_MESSAGE = 500
"""Characters of a failure's message."""
MAX_FRAMES = 16
"""Innermost frames per exception in the log; a deep recursion would take seconds to print."""
MAX_CAUSES = 4
"""Exceptions in the log that led to one another, and those of a group that are named."""

RETURNABLE = "cannot be returned: return JSON, models, dataclasses, arrays, or files as bytes, Path or Pillow image."

_own: Any = vars(BaseException)
"""The attributes that every exception has, whatever its class makes of their names."""
_BEFORE_RESULT = b'{"index": %d, "success": true, "result": '
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class Outcome:
    """One item's outcome: its ``index`` in the job's list, whether it has a result, and all of it as it is sent."""

    index: int
    success: bool
    encoded: bytes
    stored: bool = False
    """Whether the result, or a file of it, is in a bucket."""

    @property
    def size(self) -> int:
        """How many bytes it takes."""
        return len(self.encoded)

    @property
    def body(self) -> dict[str, Any]:
        """The envelope itself."""
        body: dict[str, Any] = json.loads(self.encoded)
        return body

    @property
    def result(self) -> bytes:
        """The result alone, of an envelope that holds it, or else nothing."""
        before = _BEFORE_RESULT % self.index
        return self.encoded[len(before) : -1] if self.encoded.startswith(before) else b""


@dataclass(frozen=True, slots=True)
class Raised:
    """What is kept of an exception: its type and message for the caller, its ``trace`` for the log only."""

    kind: str
    message: str
    trace: str

    def envelope(self, index: int) -> Outcome:
        """Return it as the failure of the item at ``index``."""
        return failure(index, self.kind, self.message)


def success(index: int, value: object) -> Outcome:
    """Return the envelope of ``value``, encoded, so that nobody can change it once it is measured.

    Pydantic models, dataclasses, datetimes, enums, sets, NumPy scalars and arrays become JSON; files are not for here.
    Raises whatever the
    encoders raise for what cannot: ``ValueError`` for NaN, cycles and lone surrogates, ``TypeError`` for other objects.
    """
    result = encoded(to_jsonable_python(value, fallback=_listed))
    return Outcome(index, True, b"%b%b}" % (_BEFORE_RESULT % index, result))


def success_with_files(index: int, value: Unencoded, place: Place) -> Outcome:
    """Return the envelope of ``value``, which has files in it, once they are in their ``place``; blocks.

    Raises what ``success`` does, what ``place`` does, and ``NotAFile``.
    """

    def to_json(value: object, body: Callable[[Any], object]) -> bytes:
        return encoded(to_jsonable_python(value, fallback=lambda inner: (body if _is_file(inner) else _listed)(inner)))

    result = value.encode(place, to_json)
    return Outcome(index, True, b"%b%b}" % (_BEFORE_RESULT % index, result), stored=value.stored)


def reference(index: int, url: str, size: int) -> Outcome:
    """Return the envelope of a result of ``size`` bytes that is stored at ``url``."""
    body = {"index": index, "success": True, "result_url": url, "bytes": size}
    return Outcome(index, True, encoded(body), stored=True)


def failure(index: int, kind: str, message: str) -> Outcome:
    """Return the envelope of a failure, both texts cut.

    Not under a key ``error``: a yielded dict with a truthy one fails the whole job (SDK 1.12.0, ``rp_job.handle_job``).
    """
    cut = {"type": sendable(kind, MAX_KIND), "message": sendable(message, MAX_MESSAGE)}
    return Outcome(index, False, encoded({"index": index, "success": False, "failure": cut}))


def describe(error: BaseException) -> Raised:
    """Return what is kept of ``error``. Never raises; called where the error was caught, since its texts are code.

    Of an exception group (any ``TaskGroup`` raises one) it is what the group holds that says what went wrong.
    """
    links = [_describe_alone(link) for link in _related(error)]
    leaves = [_describe_alone(leaf) for leaf in _leaves(error)]
    kind, message = leaves[0].kind, leaves[0].message
    if len(leaves) > 1:
        kind = _describe_alone(error).kind
        message = "; ".join(f"{leaf.kind}: {leaf.message}" for leaf in leaves)
    # An object raised for item after item would gather the frames of all of them.
    BaseException.with_traceback(error, None)
    return Raised(kind, message, "\n\nwhich led to\n\n".join(link.trace for link in links))


def _related(error: BaseException) -> list[BaseException]:
    """Return ``error`` last, after what led to it, the last few: what its group holds, its cause or its context."""
    found: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and len(found) < MAX_CAUSES:
        found.append(link)
        found += [leaf for leaf in _leaves(link) if leaf is not link]
        cause, context = (_own[name].__get__(link) for name in ("__cause__", "__context__"))
        link = cause or (None if _own["__suppress_context__"].__get__(link) else context)
    return found[:MAX_CAUSES][::-1]


def _leaves(error: BaseException) -> list[BaseException]:
    """Return the first few exceptions in ``error`` that are no groups; itself, if it is none."""
    found: list[BaseException] = []
    left = [error]
    while left and len(found) < MAX_CAUSES:
        one = left.pop(0)
        if issubclass(type(one), BaseExceptionGroup):  # and not as what it says that it is
            left = [*vars(BaseExceptionGroup)["exceptions"].__get__(one), *left]
        else:
            found.append(one)
    return found


def _describe_alone(error: BaseException) -> Raised:
    frames = _read(lambda: "".join(traceback.format_tb(_own["__traceback__"].__get__(error), -MAX_FRAMES)), "")
    kind = _read(lambda: type(error).__name__, "Exception")
    message = _read(lambda: str(error), "The exception has no readable message.")
    return Raised(kind, message, f"Traceback (most recent call last):\n{frames}{kind}: {message}")


def _read(read: Callable[[], str], otherwise: str) -> str:
    """Return ``read()``, bounded and sendable, or ``otherwise`` if the task's own code fails at it."""
    try:
        return sendable(read(), 10 * MAX_MESSAGE)
    except BaseException:
        return otherwise


def encoded_part(value: object) -> bytes:
    """Return a part of an item as it is sent; raises what ``success`` raises."""
    return encoded(value if type(value) is str else to_jsonable_python(value, fallback=_listed))  # most are


def encoded(value: object) -> bytes:
    """Return JSON as the SDK encodes it."""
    return _encode(value).encode("utf-8")


def _listed(value: object) -> object:
    """Return a NumPy scalar, an array or a tensor as plain Python, without importing the library it comes from."""
    tolist = getattr(value, "tolist", None)
    if callable(tolist):
        return tolist()
    raise TypeError(f"{type(value).__name__} {RETURNABLE}")


def _is_file(value: object) -> bool:
    return isinstance(value, File)
