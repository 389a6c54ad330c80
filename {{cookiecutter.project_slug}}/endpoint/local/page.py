"""The endpoint's face in a browser: its page, what the page's form is made of, the feed that keeps it up to date."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import Response, StreamingResponse

from endpoint.local.client_api import count, key_check
from endpoint.local.feed import Feed
from endpoint.local.form import Form
from endpoint.local.queue import Queue
from endpoint.local.workers import Workers

FOLDER = Path(__file__).parent
POLICY = (
    "default-src 'none'; connect-src 'self'; img-src data:; script-src 'self'; style-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


def page_api(queue: Queue, workers: Workers, form: Form, api_key: str | None, ending: Callable[[], bool]) -> APIRouter:
    """Return the routes for a browser on this machine; its feeds end once ``ending()`` holds.

    The page itself is for anyone, and asks for the key; what it fetches takes ``api_key`` only, or any if that is None.
    """
    api = APIRouter(dependencies=[Depends(check_host)], include_in_schema=False)
    keyed = [Depends(key_check(api_key))]

    @api.get("/")
    def page() -> Response:
        return _file("page.html", "text/html")

    @api.get("/page.css")
    def style() -> Response:
        return _file("page.css", "text/css")

    @api.get("/{name}.js")
    def script(name: Literal["page", "form"]) -> Response:
        return _file(f"{name}.js", "text/javascript")

    @api.get("/form", dependencies=keyed)
    async def read_form() -> dict[str, Any]:
        return await form.read()

    @api.get("/feed", dependencies=keyed)
    async def follow() -> Response:
        lines = Feed(queue, lambda: count(queue, workers), ending).lines()
        return StreamingResponse(lines, headers=HEADERS, media_type="application/x-ndjson")

    return api


def check_host(request: Request) -> None:
    """Answer 403 to a browser that came by another name: a hostile page may have led it here (DNS rebinding)."""
    if not re.fullmatch(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", request.headers.get("host", "")):
        raise HTTPException(403, "forbidden: open this page as http://127.0.0.1 or http://localhost, with its port")


def _file(name: str, media_type: str) -> Response:
    return Response((FOLDER / name).read_bytes(), headers=HEADERS, media_type=media_type)
