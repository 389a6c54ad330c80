"""One item's outcome, encoded as the envelope that is sent.

The SDK (1.12.0, ``modules/rp_http.py``) encodes what a handler yields with ``json.dumps(…, ensure_ascii=False)`` and
UTF-8. If it cannot encode something, it drops it, and then never sends the job's final result. So each outcome is
encoded here first, where a fault costs its own item only.
"""

import json
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from pydantic_core import to_jsonable_python

from aggregating_worker.failed import ItemFailed
from aggregating_worker.outcome.files import File, Store, Unencoded, joined
from aggregating_worker.outcome.plain import NO_FORM, NoJson, listed, plain, where
from aggregating_worker.refusal import Refused, sendable

MAX_KIND = 100
"""Characters of a failure's type."""
MAX_MESSAGE = 500
"""Characters of a failure's message."""
MAX_LOGGED = 5_000
"""Characters of an exception's message in the log."""
MAX_FRAMES = 16
"""Innermost frames per exception in the log; a deep recursion would take seconds to print."""
MAX_CAUSES = 4
"""Exceptions that are logged of a chain, or named of a group."""

WITH_FILE = "There is a file in it, and files are sent in results only."

_BEFORE_RESULT = b'{"index": %d, "success": true, "result": '
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


Broken = Literal["", "CUDA", "restart"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One item's outcome: its ``index``, whether it has a result, and its envelope, encoded."""

    index: int
    success: bool
    encoded: bytes
    stored: bool = False
    """Whether the result, or a file in it, is in a bucket."""

    @property
    def size(self) -> int:
        """Bytes of the envelope."""
        return len(self.encoded)

    @property
    def body(self) -> dict[str, Any]:
        """The envelope."""
        body: dict[str, Any] = json.loads(self.encoded)
        return body

    @property
    def bare(self) -> bytes:
        """The answer of a plain handler instead: ``output``, or ``error`` and perhaps details as ``output``, encoded.

        That is what the SDK makes of a returned ``{"error": …}`` with more in it (1.12.0, ``rp_job.run_job``).
        """
        if result := self.result:
            return b'"output": ' + result
        match self.body:
            case {"failure": {"type": kind, "message": message, **more}}:
                answer = {"error": message or kind, **({"output": more["details"]} if more else {})}
                return encoded(answer)[1:-1]
            case {"result_url": url, "bytes": size}:
                return b'"output": ' + encoded({"result_url": url, "bytes": size})
        raise AssertionError("an envelope has one of the three")

    @property
    def result(self) -> bytes:
        """The result, encoded, if the envelope holds it; else empty."""
        before = _BEFORE_RESULT % self.index
        return self.encoded[len(before) : -1] if self.encoded.startswith(before) else b""


@dataclass(frozen=True, slots=True)
class Raised:
    """What is kept of an exception: its type and message for the caller, its ``trace`` for the log only.

    Of one whose message is a sentence for the worker's owner (``Refused``) there is no trace.
    """

    kind: str
    message: str
    trace: str
    details: Any = None
    """More for the caller, as plain JSON values."""
    refresh_worker: bool = False
    """Whether it asks for a new worker after the job."""
    broken: Broken = ""
    """Why its process cannot be trusted any more."""
    deliberate: bool = False
    """Whether it is an ``ItemFailed``."""

    def outcome(self, index: int) -> Outcome:
        """Return the failure of the item at ``index``."""
        return failure(index, self.kind, self.message, self.details)


class Unsendable(Exception):
    """A value of the task's cannot be sent. The text says where and why; ``kind`` is the failure's type."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind

    @classmethod
    def of(cls, name: str, value: object, error: Exception) -> "Unsendable":
        """Return what to raise where ``error`` was raised of ``value``, which its caller knows by ``name``."""

        def why(part: object) -> Exception | None:
            try:
                _json(plain(part)[0], lambda one: None if isinstance(one, File) else listed(one))
            except Exception as error:
                return error
            return None

        path, part = where(value, lambda part: why(part) is not None)
        found = why(part) or error
        if isinstance(found, NoJson):
            said = f" {found}"
        elif isinstance(found, UnicodeEncodeError):
            said = " has half of a surrogate pair, which UTF-8 cannot carry"
        elif str(found).startswith("Out of range float"):
            number = str(listed(part) if hasattr(part, "tolist") else part)
            said = f" is {number.replace('nan', 'NaN').replace('inf', 'Infinity')}, {NO_FORM}"
        else:
            said = f": {found}"
        return cls(f"{name}{path}{said}.", "ValueError" if isinstance(error, NoJson) else type(error).__name__)


def seal(index: int, value: object) -> Outcome | Unencoded:
    """Return the outcome of an item whose result is ``value`` or, if there are files in it, what is to be encoded.

    Pydantic models, dataclasses, datetimes, enums, sets, NumPy scalars and arrays become JSON. Raises ``Unsendable`` if
    JSON has no form for something in it, and whatever the task's own types raise.
    """
    found = value
    try:
        found, files = plain(value)
        return Unencoded(found, files) if files else Outcome(index, True, _success(index, _json(found)))
    except (TypeError, ValueError) as error:
        raise Unsendable.of("result", found, error) from error


def with_files(value: Unencoded) -> list[bytes]:
    """Return a result with files in it in pieces, for ``joined``. Raises what ``seal`` raises, and ``NotAFile``."""

    def to_json(found: object, place: Callable[[Any], object]) -> bytes:
        try:
            return _json(found, lambda one: place(one) if isinstance(one, File) else listed(one))
        except (TypeError, ValueError) as error:
            raise Unsendable.of("result", found, error) from error

    return value.encode(to_json)


def success_with_files(index: int, pieces: Sequence[bytes], store: Store) -> Outcome:
    """Return the outcome of an item whose result has files in it, each offered to ``store``, whose faults it raises."""
    result, stored = joined(pieces, store)
    return Outcome(index, True, _success(index, result), stored=stored)


def reference(index: int, url: str, size: int) -> Outcome:
    """Return the outcome of an item whose result, of ``size`` bytes, is stored at ``url``."""
    body = {"index": index, "success": True, "result_url": url, "bytes": size}
    return Outcome(index, True, encoded(body), stored=True)


def failure(index: int, kind: str, message: str, details: Any = None) -> Outcome:
    """Return the outcome of an item that failed, with ``kind`` and ``message`` cut, and ``details`` if there are any.

    They are not under a key ``error``: a yielded dict with a truthy one fails the whole job (SDK 1.12.0,
    ``rp_job.handle_job``).
    """
    cut = {"type": sendable(kind, MAX_KIND), "message": sendable(message, MAX_MESSAGE)}
    if details is not None:
        cut["details"] = details
    return Outcome(index, False, encoded({"index": index, "success": False, "failure": cut}))


def describe(error: BaseException) -> Raised:
    """Return what is kept of ``error``, also if its message cannot be read.

    Of an exception group (a ``TaskGroup`` raises one), the message names the exceptions in it.
    """
    trace = "\n\nwhich led to\n\n".join(map(_trace, _chain(error)))
    error.with_traceback(None)  # an exception that is raised for item after item would gather the frames of all
    leaves = _leaves(error)
    if len(leaves) > 1:
        message = "; ".join(f"{type(leaf).__name__}: {_message(leaf)}" for leaf in leaves)
        return Raised(type(error).__name__, message, trace)
    [leaf] = leaves
    if type(leaf) is ItemFailed:
        broken: Broken = "restart" if leaf.restart else ""
        return Raised(str(leaf.type), _message(leaf), trace, _details(leaf.details), leaf.refresh_worker, broken, True)
    if type(leaf) is Unsendable:
        return Raised(leaf.kind, str(leaf), trace)
    if type(leaf) is Refused:
        return Raised(Refused.__name__, str(leaf), "")
    message = _message(leaf)
    lost_gpu = issubclass(type(leaf), RuntimeError) and message.startswith("CUDA error")  # for the life of the process
    return Raised(type(leaf).__name__, message, trace, broken="CUDA" if lost_gpu else "")


def _details(details: object) -> Any:
    try:
        return json.loads(encoded_value("details", details) or encoded(WITH_FILE))
    except Unsendable as error:
        return f"The {error}"
    except BaseException as error:  # the task's own types may raise anything
        return f"The details cannot be sent: {type(error).__name__}."


def is_error(value: object) -> TypeGuard[dict[Any, Any]]:
    """Whether a task has returned what fails the job of a plain handler (SDK 1.12.0, ``rp_job.run_job``)."""
    return isinstance(value, dict) and isinstance(error := value.get("error"), str | list | dict) and bool(error)


def returned_error(index: int, value: dict[Any, Any]) -> Outcome:
    """Return the failure of an item whose result ``is_error``; what else is in it are the details."""
    error, rest = value["error"], {name: inner for name, inner in value.items() if name != "error"}
    message = error if isinstance(error, str) else encoded_value("error", error).decode() or WITH_FILE
    return failure(index, "Error", message, _details(rest) if rest else None)


def _chain(error: BaseException) -> list[BaseException]:
    """Return ``error``, last, and the exceptions that led to it: causes, contexts and those in a group."""
    found: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and len(found) < MAX_CAUSES:
        found += [link, *(leaf for leaf in _leaves(link) if leaf is not link)]
        link = link.__cause__ if link.__suppress_context__ else link.__context__
    return found[:MAX_CAUSES][::-1]


def _leaves(error: BaseException) -> list[BaseException]:
    """Return the first exceptions in a group, and in the groups in it; of another exception, itself."""
    found: list[BaseException] = []
    left = [error]
    while left and len(found) < MAX_CAUSES:
        one = left.pop(0)
        if isinstance(one, BaseExceptionGroup):
            left = [*one.exceptions, *left]
        else:
            found.append(one)
    return found


def _trace(error: BaseException) -> str:
    frames = "".join(traceback.format_tb(error.__traceback__, -MAX_FRAMES))
    return f"Traceback (most recent call last):\n{frames}{type(error).__name__}: {_message(error)}"


def _message(error: BaseException) -> str:
    try:
        return sendable(str(error), MAX_LOGGED)
    except BaseException:  # its ``__str__`` may be the task's code
        return "The exception has no readable message."


def encoded_value(name: str, value: object) -> bytes:
    """Return a value of the task's as JSON, if there is no file in it. Raises what ``seal`` raises, of ``name``."""
    try:
        found, files = plain(value)
        return b"" if files else _json(found)
    except (TypeError, ValueError) as error:
        raise Unsendable.of(name, value, error) from error


def encoded(value: object) -> bytes:
    """Return JSON as the SDK encodes it."""
    return _encode(value).encode("utf-8")


def _json(value: object, fallback: Callable[[Any], object] = listed) -> bytes:
    return encoded(value if type(value) is str else to_jsonable_python(value, fallback=fallback))  # most are text


def _success(index: int, result: bytes) -> bytes:
    return b"%b%b}" % (_BEFORE_RESULT % index, result)
