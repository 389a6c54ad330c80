"""The endpoints of a Runpod account, over the platform's REST API v2 (https://api.runpod.io/v2/openapi.json)."""

import os
import re
import time
from functools import partial
from typing import Any, Self
from urllib.parse import quote

import httpx
import stamina
from pydantic import BaseModel, Field, ValidationError

from aggregating_worker.deploy.refusal import Ambiguous, Refused, Unanswered, refusal
from aggregating_worker.sentence import KEYS, one_line

PATH = "/v2/serverless"
SECONDS = 30.0
"""How long an answer may take."""
LARGEST = 50_000_000
"""Bytes of an answer at most: one lists all endpoints of the account."""
TRIES = 4
MOMENT = 1.0
"""Seconds after which a name that several endpoints have is looked up again, and then twice as many, and so on."""
PATIENCE = 60.0
"""Seconds of ``Retry-After`` that are waited out: the shortest window of the platform's rate limit."""


class Endpoint(BaseModel):
    """What deploying needs to know of an endpoint (schema ``Endpoint``)."""

    id: str
    type: str = "QUEUE"
    image: str | None = None
    env: dict[str, str] | None = None
    workers: dict[str, int]
    created: str = Field(default="", alias="createdAt")
    """ISO 8601, so that the order of texts is that of times."""

    @property
    def path(self) -> str:
        """Where the endpoint is read and changed."""
        return f"{PATH}/{quote(self.id, safe='')}"


class Rest:
    """A client of the API with ``key``, as a context manager. Every call may raise ``Refused``.

    What fails on the way is tried again where that can do no harm: reading, updating (which ends the same however often
    it is done), and what the rate limit (429) kept from being done. Creating is not.
    """

    def __init__(self, key: str) -> None:
        self.url = api_url()
        self._http = httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def named(self, name: str) -> Endpoint | None:
        """Return the endpoint called ``name``, or None. Names need not be unique: refuse to guess between several."""
        for attempt in stamina.retry_context(Ambiguous, attempts=TRIES, wait_initial=MOMENT):
            with attempt:
                found = self._all_named(name)
                if len(found) > 1:
                    ids = one_line(", ".join(str(each.get("id")) for each in found))
                    words = f"{len(found)} endpoints are called {name} ({ids})"
                    raise Ambiguous(f"{words}: delete all but one, or choose a --name.")
        return _endpoint(found[0]) if found else None

    def first(self, name: str, created: Endpoint) -> Endpoint:
        """Return ``created``, or another endpoint called ``name`` if that was there before it."""
        others = [_endpoint(each) for each in self._all_named(name) if each.get("id") != created.id]
        return min([created, *others], key=lambda each: (each.created, each.id))

    def delete(self, endpoint: Endpoint) -> None:
        """Delete an endpoint."""
        self._send("DELETE", endpoint.path)

    def _all_named(self, name: str) -> list[dict[str, Any]]:
        listed = self._send("GET")  # every endpoint of the account: this list has no pages
        if not isinstance(listed, dict) or not isinstance(listed.get("endpoints"), list):
            raise Refused(f"{self.url} does not answer with a list of endpoints: check RUNPOD_API_BASE_URL.")
        # With GraphQL, a name that ends so turns FlashBoot on (docs, sdks/graphql/manage-endpoints).
        names = (name, f"{name} -fb")
        return [each for each in listed["endpoints"] if isinstance(each, dict) and each.get("name") in names]

    def create(self, body: dict[str, Any]) -> Endpoint:
        """Create an endpoint (schema ``CreateEndpointRequest``). If the answer is lost, the name tells."""
        try:
            return _endpoint(self._send("POST", body=body))
        except Unanswered:
            created = self.named(body["name"])
            if created and created.image == body["image"]:  # another may be somebody else's
                return created
            raise

    def update(self, endpoint: Endpoint, body: dict[str, Any]) -> Endpoint:
        """Change an endpoint (schema ``UpdateEndpointRequest``): a field that ``body`` leaves out stays as it is."""
        return _endpoint(self._send("PATCH", endpoint.path, body))

    def _send(self, method: str, path: str = PATH, body: dict[str, Any] | None = None) -> Any:
        try:
            for attempt in stamina.retry_context(partial(_again, method), attempts=TRIES, timeout=2 * PATIENCE):
                with attempt:
                    response = self._answer(method, path, body).raise_for_status()
            return response.json() if response.content else None
        except httpx.HTTPError as error:
            raise refusal(error) from None
        except (ValueError, RecursionError):
            raise Unanswered(f"{self.url} does not answer with JSON: check RUNPOD_API_BASE_URL.") from None

    def _answer(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        """Return an answer that has been read, unless it is too large or takes too long."""
        until = time.monotonic() + 2 * SECONDS
        content = bytearray()
        with self._http.stream(method, path, json=body, headers={"Accept-Encoding": "gzip"}) as response:
            for piece in response.iter_bytes():
                content += piece
                if len(content) > LARGEST or time.monotonic() > until:
                    raise httpx.ReadError("its answer has no end", request=response.request)
        return httpx.Response(
            response.status_code,
            headers={"Retry-After": response.headers.get("Retry-After", "")},  # the others are of the compressed body
            content=bytes(content),
            request=response.request,
            extensions={"reason_phrase": response.reason_phrase.encode()},
        )


def api_url() -> str:
    """Return where the API is: ``RUNPOD_API_BASE_URL``, as for the SDK (runpod 1.12.0, ``api/graphql.py``)."""
    url = os.environ.get("RUNPOD_API_BASE_URL", "").rstrip("/") or "https://api.runpod.io"
    try:
        if httpx.URL(url).scheme in ("http", "https") and httpx.URL(url).host:
            return url
    except httpx.InvalidURL:
        pass
    raise Refused("RUNPOD_API_BASE_URL is not a URL: unset it, or give one such as https://api.runpod.io.")


def api_key() -> str:
    """Return ``RUNPOD_API_KEY``, or an empty string. Raises ``Refused`` if it cannot be a bearer token (RFC 6750)."""
    key = os.environ.get("RUNPOD_API_KEY", "").strip()
    if key and not re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", key):
        raise Refused(f"RUNPOD_API_KEY is not an API key: make one at {KEYS}, under API Keys.")
    return key


def _again(method: str, error: Exception) -> bool | float:
    """Return whether a request that ended with ``error`` is sent again, or in how many seconds."""
    if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == 429:
        wait = error.response.headers.get("Retry-After", "")
        if not wait.isdecimal():
            return True
        return float(wait) if float(wait) <= PATIENCE else False
    if isinstance(error, httpx.HTTPStatusError):
        return method != "POST" and error.response.status_code >= 500
    return method != "POST" and isinstance(error, httpx.TransportError)


def _endpoint(answer: Any) -> Endpoint:
    try:
        return Endpoint.model_validate(answer)
    except ValidationError:
        raise Unanswered("Runpod answered with something that is not an endpoint.") from None
