"""One call of an endpoint's job API: the key, the pace, what is tried again, and a sentence for what goes wrong.

A call whose connection broke is made again, ``POST /run`` too: its job may have been queued all the same, and then it
runs for nobody. That costs work, where giving up would cost results.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import httpx
import stamina

from endpoint.client.envelopes import parse

BASE_URL = "https://api.runpod.ai/v2"
"""The SDK's own default (runpod 1.12.0, ``runpod/__init__.py``)."""
KEYS = "https://console.runpod.io/user/settings"
ATTEMPTS = 8
"""How often a call is made at most: for half a minute, three windows of the platform's rate limits."""
LONGEST_WAIT = 15.0
"""Seconds between two attempts at most, of our own choice."""
LONGEST_HOLD = 60.0
"""Seconds for which a ``Retry-After`` is obeyed at most."""
GAP = 0.02
"""Seconds between two calls of one client: 500 in 10 s, where the platform takes 1,000 on ``/run`` and 2,000 on
``/stream`` (Runpod docs, serverless/endpoints/operations)."""
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as broken."""
HINTS = {
    401: f" Check RUNPOD_API_KEY ({KEYS}).",
    403: f" Check RUNPOD_API_KEY ({KEYS}).",
    404: " Check the endpoint's id.",
}


class CallFailed(Exception):
    """What was asked for did not come about. The message is a sentence for a person; ``status`` is HTTP's, if any."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """The job API of one endpoint. What is not given comes from the environment, under the SDK's own names.

    Raises ``CallFailed`` if something is missing or cannot be used.
    """

    def __init__(self, endpoint_id: str | None, api_key: str | None, base_url: str | None) -> None:
        self._key = _given(api_key, "RUNPOD_API_KEY", f"get a key at {KEYS}")
        if not (self._key.isascii() and self._key.isprintable()):
            raise CallFailed(f"RUNPOD_API_KEY is not a key, which has plain characters only: get one at {KEYS}.")
        endpoint_id = _given(
            endpoint_id, "RUNPOD_ENDPOINT_ID", "it stands on the endpoint's page in the Runpod console"
        )
        base_url = base_url or os.environ.get("RUNPOD_ENDPOINT_BASE_URL") or BASE_URL
        self._host = _host(base_url)
        self._url = f"{base_url.rstrip('/')}/{quote(endpoint_id, safe='')}"
        self._http = httpx.AsyncClient(timeout=httpx.Timeout(TIMEOUT, pool=None))
        self._next = 0.0

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def call(self, method: str, path: str, body: bytes = b"", held: float = 0) -> dict[str, Any]:
        """Return the JSON object that the endpoint answers, having ``held`` it back for so many seconds at most.

        Raises ``CallFailed``.
        """
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        patience = httpx.Timeout(TIMEOUT, read=held + TIMEOUT, pool=None)

        async def send() -> httpx.Response:
            await self._turn()
            response = await self._http.request(
                method, self._url + path, content=body, headers=headers, timeout=patience
            )
            self._hold(response)
            return response

        answer = await self._insist(send)
        if not isinstance(answer, dict):
            raise CallFailed(f"{self._host} did not answer with a JSON object: is the address right?")
        return answer

    async def fetch(self, url: str) -> Any:
        """Return the JSON value that a bucket holds at ``url``. Raises ``CallFailed``.

        Without the key: the URL carries its own permission, and a bucket must not learn the key.
        """
        return await self._insist(lambda: self._http.get(url, follow_redirects=True))

    async def _insist(self, send: Callable[[], Awaitable[httpx.Response]]) -> Any:
        """Return the JSON value that comes back, trying again as long as what goes wrong may pass."""
        try:
            async for attempt in stamina.retry_context(
                _may_pass, ATTEMPTS, timeout=None, wait_initial=0.25, wait_max=LONGEST_WAIT, wait_jitter=0.25
            ):
                with attempt:
                    response = await send()
                    response.raise_for_status()
                    answer = _parsed(response)
        except httpx.HTTPStatusError as error:
            raise CallFailed(self._refusal(error.response), error.response.status_code) from None
        except (httpx.RequestError, httpx.InvalidURL) as error:
            reason = plain(str(error)) or type(error).__name__
            raise CallFailed(f"{self._host} gave no answer that can be used: {reason}.") from None
        return answer

    async def _turn(self) -> None:
        now = asyncio.get_running_loop().time()
        self._next = max(now, self._next + GAP)
        await asyncio.sleep(self._next - now)

    def _hold(self, response: httpx.Response) -> None:
        """Hold back every call for as long as an answer asks for; one that gives a date leaves it to the backoff."""
        seconds = response.headers.get("retry-after", "")
        if seconds.isascii() and seconds.isdecimal() and response.is_error:
            until = asyncio.get_running_loop().time() + min(float(seconds), LONGEST_HOLD)
            self._next = max(self._next, until)

    def _refusal(self, response: httpx.Response) -> str:
        """Return the platform's own words, if it has any, on one line and without the key."""
        try:
            said = parse(response.content)
        except ValueError:  # a proxy's page
            said = None
        texts = [said.get(name) for name in ("error", "message", "detail", "title")] if isinstance(said, dict) else []
        reason = next((text for text in texts if isinstance(text, str)), response.reason_phrase)
        reason = plain(reason.replace(self._key, "…"))
        return f"{self._host} answered {response.status_code}: {reason}.{HINTS.get(response.status_code, '')}"


def plain(text: str) -> str:
    """Return ``text`` on one line of at most 500 characters, without what a terminal would obey."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:500].rstrip(".")


def _given(value: str | None, variable: str, where: str) -> str:
    if given := (value or os.environ.get(variable, "")).strip():
        return given
    raise CallFailed(f"{variable} is not set: {where}.")


def _host(base_url: str) -> str:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise CallFailed(f"RUNPOD_ENDPOINT_BASE_URL should be a web address such as {BASE_URL}.")
    return url.host


def _parsed(response: httpx.Response) -> Any:
    try:
        return parse(response.content)
    except ValueError as error:  # cut short, or somebody else's
        raise httpx.DecodingError(f"not JSON: {error}") from None


def _may_pass(error: Exception) -> bool:
    """Whether the same call may succeed later."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return isinstance(error, httpx.RequestError) and not isinstance(error, httpx.UnsupportedProtocol)
