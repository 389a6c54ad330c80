"""The endpoints of a Runpod account, over the platform's REST API v2 (https://api.runpod.io/v2/openapi.json)."""

import os
import re
from functools import partial
from typing import Any, Self

import httpx
import stamina
from pydantic import BaseModel, ValidationError

PATH = "/v2/serverless"
SECONDS = 30.0
"""How long an answer may take."""
TRIES = 4
PATIENCE = 60.0
"""Seconds of ``Retry-After`` that are waited out: the shortest window of the platform's rate limit."""
KEYS = "https://console.runpod.io/user/settings, under API Keys"
LATER = "run the command again in a while"
ADVICE = {
    401: f"set RUNPOD_API_KEY to a key from {KEYS}",
    403: f"give the key read and write access at {KEYS}",
    429: LATER,
}


class Refused(Exception):
    """What went wrong, as a sentence for the person at the terminal."""


class Unanswered(Refused):
    """The request may have been carried out all the same."""


class Endpoint(BaseModel):
    """What deploying needs to know of an endpoint (schema ``Endpoint``)."""

    id: str
    type: str = "QUEUE"
    image: str | None = None
    env: dict[str, str] | None = None
    workers: dict[str, int]

    @property
    def path(self) -> str:
        """Where the endpoint is read and changed."""
        return f"{PATH}/{self.id}"


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
        listed = self._send("GET")  # every endpoint of the account: this list has no pages
        if not isinstance(listed, dict) or not isinstance(listed.get("endpoints"), list):
            raise Refused(f"{self.url} does not answer with a list of endpoints: check RUNPOD_API_BASE_URL.")
        # With GraphQL, a name that ends so turns FlashBoot on (docs, sdks/graphql/manage-endpoints).
        names = (name, f"{name} -fb")
        found = [each for each in listed["endpoints"] if isinstance(each, dict) and each.get("name") in names]
        if len(found) > 1:
            ids = one_line(", ".join(str(each.get("id")) for each in found))
            raise Refused(f"{len(found)} endpoints are called {name} ({ids}): delete all but one, or choose a --name.")
        return _endpoint(found[0]) if found else None

    def create(self, body: dict[str, Any]) -> Endpoint:
        """Create an endpoint (schema ``CreateEndpointRequest``). If the answer is lost, the name tells."""
        try:
            return _endpoint(self._send("POST", body=body))
        except Unanswered:
            if created := self.named(body["name"]):
                return created
            raise

    def update(self, endpoint: Endpoint, body: dict[str, Any]) -> Endpoint:
        """Change an endpoint (schema ``UpdateEndpointRequest``): a field that ``body`` leaves out stays as it is."""
        return _endpoint(self._send("PATCH", endpoint.path, body))

    def _send(self, method: str, path: str = PATH, body: dict[str, Any] | None = None) -> Any:
        try:
            for attempt in stamina.retry_context(partial(_again, method), attempts=TRIES, timeout=2 * PATIENCE):
                with attempt:
                    response = self._http.request(method, path, json=body).raise_for_status()
            return response.json()
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            advice = ADVICE.get(status, LATER if status >= 500 else "")
            sentence = f"{reason(error)}: {advice}." if advice else f"{reason(error)}."
            raise (Unanswered if status >= 500 else Refused)(sentence) from None
        except httpx.HTTPError as error:
            sentence = f"{reason(error)}: {LATER}."
            raise (Refused if isinstance(error, httpx.ConnectError) else Unanswered)(sentence) from None
        except (ValueError, RecursionError):
            raise Unanswered(f"{self.url} does not answer with JSON: check RUNPOD_API_BASE_URL.") from None


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
        raise Refused(f"RUNPOD_API_KEY is not an API key: make one at {KEYS}.")
    return key


def without_key(text: str) -> str:
    """Return ``text`` as it may be printed, whoever put the key into it."""
    key = os.environ.get("RUNPOD_API_KEY", "").strip()
    return text.replace(key, "***") if key else text


def one_line(text: str) -> str:
    """Return ``text`` as a terminal can show it: in one line, without control characters."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())


def reason(error: BaseException) -> str:
    """Say what an ``httpx`` error means, with the API's own detail (schema ``ErrorResponse``) where there is one."""
    if not isinstance(error, httpx.HTTPStatusError):
        return one_line(f"No answer from {api_url()} ({str(error).rstrip('.') or type(error).__name__})")
    try:
        problem = error.response.json()
    except (ValueError, RecursionError):
        problem = None
    if not isinstance(problem, dict):
        problem = {}
    detail = problem.get("detail") or problem.get("title") or error.response.reason_phrase or "no reason given"
    faults = problem.get("errors") or []
    said = [str(detail).rstrip("."), *map(str, faults if isinstance(faults, list) else [faults])]
    return one_line(f"Runpod answered {error.response.status_code} ({'; '.join(said)})")


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
