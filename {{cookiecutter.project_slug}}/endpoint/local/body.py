"""Request bodies as the platform takes them: within a limit, and JSON to the letter. Answers that any JSON survives."""

import json
from typing import Any, NoReturn

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse

MARGIN = 100
"""Levels of nesting that a body must leave free."""


class Answer(JSONResponse):
    """JSON in ASCII: a lone surrogate that came in escaped goes out escaped, where UTF-8 could not carry it."""

    def render(self, content: Any) -> bytes:
        """Encode ``content``."""
        return json.dumps(content, separators=(",", ":")).encode("ascii")


async def read_object(request: Request, limit: int) -> dict[str, Any]:
    """Return the JSON object in the body of ``request``; answer 400 if it is none, or over ``limit`` bytes."""
    body = bytearray()
    size = 0
    async for part in request.stream():  # to its end: hanging up on a caller that still sends would hide the answer
        size += len(part)
        if size <= limit:
            body += part
    if size > limit:
        raise HTTPException(400, f"bad request: body: exceeded max body size of {limit} bytes")
    try:
        content = json.loads(body.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"bad request: body: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise HTTPException(400, "bad request: body: not a JSON object")
    return content


def check_depth(content: Any) -> None:
    """Answer 400 if ``content`` is nested too deeply to go out again, within other objects and from deeper code."""
    for _ in range(MARGIN):
        content = [content]
    try:
        json.dumps(content)
    except RecursionError:
        raise HTTPException(400, "bad request: body: nested too deeply") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
