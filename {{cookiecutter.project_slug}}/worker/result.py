"""One item's outcome as an envelope that is known to be sendable.

The SDK (1.12.0, ``modules/rp_http.py``) encodes what a handler yields with ``json.dumps(…, ensure_ascii=False)`` and
UTF-8. What it cannot encode it drops, and then never sends the job's final result. So each envelope is encoded here
first, where a fault still costs one item only.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_jsonable_python

from worker.refusal import sendable

MAX_TYPE_CHARACTERS = 100
MAX_MESSAGE_CHARACTERS = 500

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class Envelope:
    """One item's outcome: ``body`` as it is sent, and its ``size`` in bytes once the SDK has encoded it."""

    body: dict[str, Any]
    size: int

    @property
    def index(self) -> int:
        """The item's place in the job's list."""
        index: int = self.body["index"]
        return index

    @property
    def success(self) -> bool:
        """Whether the item has a result."""
        success: bool = self.body["success"]
        return success


def success(index: int, value: object) -> Envelope:
    """Return the envelope of ``value``, copied, so that nobody can change it once it is measured.

    Pydantic models, dataclasses, datetimes, enums, sets, NumPy scalars and arrays become JSON. Raises whatever the
    encoders raise for what cannot: ``ValueError`` for NaN, cycles and lone surrogates, ``TypeError`` for other objects.
    """
    return _seal({"index": index, "success": True, "result": to_jsonable_python(value, fallback=_listed)})


def failure(index: int, error: BaseException) -> Envelope:
    """Return the envelope of ``error``, its message cut at 500 characters. Never raises.

    Not under a key ``error``: a yielded dict with a truthy one fails the whole job (SDK 1.12.0, ``rp_job.handle_job``).
    """
    kind = _read(lambda: type(error).__name__, "Exception")
    return failed(index, kind, _read(lambda: str(error), "The exception has no readable message."))


def failed(index: int, kind: str, message: str) -> Envelope:
    """Return the envelope of a failure of type ``kind``."""
    cut = {"type": sendable(kind, MAX_TYPE_CHARACTERS), "message": sendable(message, MAX_MESSAGE_CHARACTERS)}
    return _seal({"index": index, "success": False, "failure": cut})


def _read(read: Callable[[], str], otherwise: str) -> str:
    """Return ``read()`` as a plain string, or ``otherwise`` if the task's own ``__str__`` fails at it."""
    try:
        return "".join(read())
    except BaseException:
        return otherwise


def _seal(body: dict[str, Any]) -> Envelope:
    return Envelope(body, len(_encode(body).encode("utf-8")))


def _listed(value: object) -> object:
    """Return a NumPy scalar, an array or a tensor as plain Python, without importing the library it comes from."""
    tolist = getattr(value, "tolist", None)
    if callable(tolist):
        return tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")
