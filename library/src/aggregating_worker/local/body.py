"""Reads request bodies as strictly as the platform does: up to a size, and valid JSON. The text is kept as it came."""

import json
import math
from collections.abc import Set
from typing import Any, NamedTuple, NoReturn

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

MARGIN = 100
"""Levels by which a request must stay below Python's limit of nesting: a worker reads it from within other calls."""
SHALLOW = 100
"""A request with no more opening brackets than this cannot be nested too deeply, and is not checked."""


class Body(NamedTuple):
    """A request's JSON, parsed and as the text that came."""

    content: dict[str, Any]
    text: bytes


def answer(text: bytes, status: int = 200) -> Response:
    """Return a response whose body is ``text``, which is JSON."""
    return Response(text, status, media_type="application/json")


def encode(content: Any) -> bytes:
    """Return ``content`` as JSON in ASCII, in which a lone surrogate is escaped: UTF-8 has no form for it.

    Answers 400 if the content is nested too deeply: it came in a request.
    """
    try:
        return _encoder.encode(content).encode("ascii")
    except RecursionError:
        raise HTTPException(400, "bad request: body: nested too deeply") from None


async def read(request: Request, limit: int) -> Body:
    """Return the JSON object in the body of ``request``; answer 400 if it is not one, or over ``limit`` bytes."""
    content, text = await read_any(request, limit)
    if not isinstance(content, dict):
        raise HTTPException(400, "bad request: body: not a JSON object")
    return Body(content, text)


async def read_any(request: Request, limit: int) -> tuple[Any, bytes]:
    """Return the JSON in the body of ``request``, parsed and as text; answer 400 as ``read`` does."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():  # to its end: a caller that is cut off while it sends does not see the answer
        size += len(part)
        if size <= limit:
            parts.append(part)
    if size > limit:
        raise HTTPException(400, f"bad request: body: exceeded max body size of {_words(limit)}")
    text = b"".join(parts)
    try:
        return _decoder.decode(text.decode("utf-8")), text
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"bad request: body: not valid JSON: {error}") from None


def members(body: Body, names: Set[str]) -> bytes:
    """Return the members ``names`` of ``body`` as JSON without the braces; if it has no others, the text as it came."""
    content, text = body
    if content.keys() <= names:
        return text.strip()[1:-1]
    return encode({name: content[name] for name in content if name in names})[1:-1]


def check_depth(body: Body) -> None:
    """Answer 400 if ``body`` is nested too deeply for code that handles it inside other objects and calls."""
    if body.text.count(b"[") + body.text.count(b"{") > SHALLOW:
        content: Any = body.content
        for _ in range(MARGIN):
            content = [content]
        encode(content)


def _words(limit: int) -> str:
    return f"{limit >> 20}MiB" if limit >> 20 else f"{limit} bytes"


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:20]} is too large a number")
    return number


_encoder = json.JSONEncoder(separators=(",", ":"))
_decoder = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)
