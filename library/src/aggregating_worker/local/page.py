"""The endpoint's page for a browser: its files, the data for its form, and the feed that keeps it up to date."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from aggregating_worker.local.batch import BatchQueue
from aggregating_worker.local.body import answer, encode
from aggregating_worker.local.client_api import count
from aggregating_worker.local.feed import Feed
from aggregating_worker.local.form import Form
from aggregating_worker.local.queue import Queue
from aggregating_worker.local.routes import Routes
from aggregating_worker.local.workers import Workers

FOLDER = Path(__file__).parent
FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/form.js": ("form.js", "text/javascript"),
}
BATCHES = 20
"""Batches shown: the newest."""
POLICY = (
    "default-src 'none'; connect-src 'self'; img-src data: blob:; script-src 'self'; style-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


def page_files(api: Routes) -> None:
    """Add the page's files to ``api``. Anyone may have them; the page asks for the key."""
    for path, file in FILES.items():

        async def show(_: Request, file: tuple[str, str] = file) -> Response:
            name, media_type = file
            return Response((FOLDER / name).read_bytes(), headers=HEADERS, media_type=media_type)

        api.get(path)(show)


def page_api(
    api: Routes, queue: Queue, workers: Workers, batches: BatchQueue, form: Form, ending: Callable[[], bool]
) -> None:
    """Add the routes from which the page fetches to ``api``; feeds end once ``ending()`` is true."""

    def counts() -> dict[str, Any]:
        return {**count(queue, workers), "batches": batches.states(BATCHES), "form": form.edition}

    @api.get("/form")
    async def read_form(_: Request) -> Response:
        return answer(encode(await form.read()))

    @api.get("/feed")
    async def follow(_: Request) -> Response:
        lines = Feed(queue, counts, ending).lines()
        return StreamingResponse(lines, headers=HEADERS, media_type="application/x-ndjson")
