"""Runpod's REST API v2 (https://api.runpod.io/v2/openapi.json) as far as deploying needs it. Errors are sentences.

One route is of the job API: an endpoint's ``/health``.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

import httpx2
import stamina
from pydantic import BaseModel, ValidationError

from aggregating_worker.proxies import UNUSABLE
from aggregating_worker.sentence import KEYS, one_line

PATH = "/v2/serverless"
SECONDS = 30.0
"""How long an answer may take."""
TRIES = 4
PATIENCE = 60
"""The longest ``Retry-After``, in seconds, that is waited for: the shortest window of the platform's rate limit."""
SHORT = 4
"""Characters of a value that is looked for in an error: shorter ones stand in any text."""
LATER = "run the command again in a while"
ADVICE = {
    401: f"set RUNPOD_API_KEY to a key from {KEYS}, under API Keys",
    403: f"give the key read and write access at {KEYS}, under API Keys",
    429: LATER,
}


class DeployFailed(Exception):
    """Why deploying has failed, and what to do about it, as a sentence for the terminal."""

    def __init__(self, why: str, advice: str = "", *, again: bool | float = False) -> None:
        super().__init__(f"{why}: {advice}." if advice else f"{why}.")
        self.why = why
        self.again = again
        """Whether to send the same request again; a number says in how many seconds."""


class Unanswered(DeployFailed):
    """The answer is lost, so the request may have been carried out."""


class Problem(BaseModel):
    """The body of an error (schema ``ErrorResponse``)."""

    detail: str
    errors: list[str] = []


class Endpoint(BaseModel):
    """What deploying needs to know of an endpoint (schema ``Endpoint``)."""

    id: str
    type: str = "QUEUE"
    image: str | None = None
    env: dict[str, str] | None = None
    workers: dict[str, int]
    scaling: dict[str, Any] = {}

    @property
    def path(self) -> str:
        """Where the endpoint is changed."""
        return f"{PATH}/{quote(self.id, safe='')}"


class Rest:
    """The API at ``url`` for the account of ``key``. Every call may raise ``DeployFailed``.

    A request that fails is sent again where that can do no harm: reading, updating (twice is as good as once), and
    whatever the rate limit (429) refused. Creating is not. No error shows ``untyped`` values, nor those of the
    variables of an endpoint.
    """

    def __init__(self, key: str, untyped: Iterable[str], url: str = "") -> None:
        self.url = url or api_url()
        self._headers = {"Authorization": f"Bearer {key}"}
        self._untyped = [*untyped]

    def named(self, name: str) -> Endpoint | None:
        """Return the endpoint called ``name``, or None. Of several, none is chosen: that is an error."""
        listed = self._send("GET")  # every endpoint of the account: this list has no pages
        if not isinstance(listed, dict) or not isinstance(listed.get("endpoints"), list):
            raise DeployFailed(f"{self.url} does not answer with a list of endpoints", "check RUNPOD_API_BASE_URL")
        # With GraphQL, a name that ends in -fb turns FlashBoot on (docs, sdks/graphql/manage-endpoints).
        names = (name, f"{name} -fb")
        found = [each for each in listed["endpoints"] if isinstance(each, dict) and each.get("name") in names]
        if not found:
            return None
        if len(found) > 1:
            ids = one_line(", ".join(str(each.get("id")) for each in found))
            why = f"{len(found)} endpoints are called {name} ({ids})"
            raise DeployFailed(why, "delete all but one, or choose another --name")
        endpoint = _endpoint(found[0])
        self._untyped += (endpoint.env or {}).values()
        return endpoint

    def create(self, body: dict[str, Any]) -> Endpoint:
        """Create an endpoint (schema ``CreateEndpointRequest``). If the answer is lost, look for the name."""
        try:
            return _endpoint(self._send("POST", body=body))
        except Unanswered:
            created = self.named(body["name"])
            if created is None or created.image != body["image"]:  # with another image, it is somebody else's
                raise
            return created

    def update(self, endpoint: Endpoint, body: dict[str, Any]) -> Endpoint:
        """Change an endpoint (schema ``UpdateEndpointRequest``): a field that ``body`` leaves out stays as it is."""
        return _endpoint(self._send("PATCH", endpoint.path, body))

    def health(self, endpoint: Endpoint, seconds: float) -> dict[str, Any]:
        """Return how many workers and jobs the endpoint has, of each kind; it is asked once, for so many seconds."""
        health = self._send_once("GET", f"/{quote(endpoint.id, safe='')}/health", None, seconds)
        if not isinstance(health, dict) or not isinstance(health.get("workers"), dict):
            raise DeployFailed(f"{self.url} does not say how many workers the endpoint has")
        return health

    def _send(self, method: str, path: str = PATH, body: dict[str, Any] | None = None) -> Any:
        retrying = stamina.RetryingCaller(attempts=TRIES, timeout=2 * PATIENCE).on(_again)
        return retrying(self._send_once, method, path, body)

    def _send_once(self, method: str, path: str, body: dict[str, Any] | None, seconds: float = SECONDS) -> Any:
        harmless = method != "POST"
        try:
            answer = httpx2.request(
                method, self.url + path, json=body, headers=self._headers, timeout=min(SECONDS, seconds)
            )
        except (httpx2.InvalidURL, ImportError, ValueError) as error:
            raise DeployFailed(f"{UNUSABLE} ({one_line(str(error))})", "mend or unset it") from None
        except httpx2.HTTPError as error:
            why = one_line(f"No answer from {self.url} ({str(error).rstrip('.') or type(error).__name__})")
            failed = DeployFailed if isinstance(error, httpx2.ConnectError) else Unanswered
            raise failed(why, LATER, again=harmless) from None
        if not answer.is_success:
            raise self._failure(answer, harmless)
        try:
            return answer.json()
        except ValueError:
            raise Unanswered(f"{self.url} does not answer with JSON", "check RUNPOD_API_BASE_URL") from None

    def _failure(self, answer: httpx2.Response, harmless: bool) -> DeployFailed:
        """Return what an answer with an error status means, in the API's own words where it has some."""
        status = answer.status_code
        why = f"Runpod answered {status} ({one_line(self._detail(answer))})"
        if status >= 500:
            return Unanswered(why, LATER, again=harmless)
        wait = answer.headers.get("Retry-After", "")
        seconds = int(wait) if wait.isdecimal() else 1
        return DeployFailed(why, ADVICE.get(status, ""), again=status == 429 and seconds <= PATIENCE and float(seconds))

    def _detail(self, answer: httpx2.Response) -> str:
        try:
            problem = Problem.model_validate_json(answer.content)
        except ValidationError:
            problem = Problem(detail=answer.reason_phrase or "no reason given")
        detail = "; ".join([problem.detail.rstrip("."), *problem.errors])
        forms = {form for value in self._untyped for form in _forms(value) if len(form) >= SHORT}
        for form in sorted(forms, key=len, reverse=True):
            detail = detail.replace(form, "***")
        return detail


def api_url(variable: str = "RUNPOD_API_BASE_URL", default: str = "https://api.runpod.io") -> str:
    """Return where an API is: ``variable`` says it, as for the SDK (runpod 1.12.0, ``api/graphql.py``)."""
    url = os.environ.get(variable, "").rstrip("/") or default
    try:
        if httpx2.URL(url).scheme in ("http", "https") and httpx2.URL(url).host:
            return url
    except httpx2.InvalidURL:
        pass
    raise DeployFailed(f"{variable} is not a URL", f"unset it, or give one such as {default}")


def api_key() -> str:
    """Return ``RUNPOD_API_KEY``, or "". Raises ``DeployFailed`` if it cannot be a bearer token (RFC 6750)."""
    key = os.environ.get("RUNPOD_API_KEY", "").strip()
    if key and not re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", key):
        raise DeployFailed("RUNPOD_API_KEY is not an API key", f"make one at {KEYS}, under API Keys")
    return key


def without_key(text: str) -> str:
    """Return ``text`` with *** for the API key, wherever it comes from."""
    key = os.environ.get("RUNPOD_API_KEY", "").strip()
    return text.replace(key, "***") if key else text


def _forms(value: str) -> Iterator[str]:
    """Yield what a value may look like where an error quotes it: as it is, a line of it, and each as JSON or Python."""
    for text in {value, *value.splitlines()}:
        yield text
        yield json.dumps(text)[1:-1]
        yield json.dumps(text, ensure_ascii=False)[1:-1]
        yield repr(text)[1:-1]


def _again(error: Exception) -> bool | float:
    return isinstance(error, DeployFailed) and error.again


def _endpoint(answer: Any) -> Endpoint:
    try:
        return Endpoint.model_validate(answer)
    except ValidationError:
        raise Unanswered("Runpod answered with something that is not an endpoint") from None
