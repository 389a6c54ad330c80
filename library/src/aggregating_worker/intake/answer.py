"""The jobs in the answer to a take: one that cannot be read costs no other, though all came in one JSON text.

The SDK reads the answer as a whole (1.12.0, ``rp_job.get_job``). A number of 5,000 digits in one job's input, or 1,500
levels of brackets, and every job in it is lost without a line.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from aggregating_worker.request import Unreadable

TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{},]', re.DOTALL)
"""What tells where a JSON value ends: texts, in which brackets mean nothing, brackets and commas.

A text without an end goes on to the end of the answer: to look for others in it would take a time that is quadratic.
"""


def jobs_in(answer: bytes) -> Any:
    """Return the JSON value in ``answer``, in which a job that cannot be read is its id and an ``Unreadable`` input.

    In a list, what cannot be read and does not say its id is None. Raises ``ValueError`` if the whole answer is such.
    """
    try:
        return json.loads(answer)
    except (ValueError, RecursionError) as error:
        if not answer.lstrip().startswith(b"["):
            return _job(answer, error)
    return [_read(element) for element in _parts(answer.strip()[1:-1])]


def _read(element: bytes) -> Any:
    try:
        return json.loads(element)
    except (ValueError, RecursionError) as error:
        with suppress(ValueError):
            return _job(element, error)
        return None


def _job(text: bytes, error: Exception) -> dict[str, Any]:
    """Return the job in ``text``, which cannot be read as a whole; raise ``ValueError`` if it has no id."""
    why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]
    for member in _parts(text.strip()[1:-1]):
        name, _, value = member.partition(b":")
        if name.strip() == b'"id"' and value.strip().startswith(b'"'):
            return {"id": json.loads(value), "input": Unreadable(f"The job cannot be read: {why}.")}
    raise ValueError("a job that cannot be read does not say its id")


def _parts(text: bytes) -> Iterator[bytes]:
    """Yield what stands between the commas that are in no bracket."""
    begin = depth = 0
    for token in TOKEN.finditer(text):
        match token[0]:
            case b"[" | b"{":
                depth += 1
            case b"]" | b"}":
                depth -= 1
            case b"," if not depth:
                yield text[begin : token.start()]
                begin = token.end()
    if text[begin:].strip():
        yield text[begin:]
