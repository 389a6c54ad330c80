"""The job API of one endpoint: its address, the key and the pace of calls.

A call whose connection broke is made again, ``POST /run`` too. The first call may have queued a job all the same, which
then runs for nobody: that wastes some work, but giving up would lose results.
"""

import asyncio
import os
from typing import Any
from urllib.parse import quote

import httpx

from aggregating_worker.client.http import CallFailed, Http, web_address
from aggregating_worker.sentence import KEYS

BASE_URL = "https://api.runpod.ai/v2"
"""The SDK's own default (runpod 1.12.0, ``runpod/__init__.py``)."""
LONGEST_HOLD = 60.0
"""Seconds: a longer ``Retry-After`` is cut to this."""
GAP = 0.02
"""Seconds between two calls of one client: 500 in 10 s. The platform allows 1,000 on ``/run`` and 2,000 on ``/stream``
(Runpod docs, serverless/endpoints/operations)."""
HINTS = {
    401: f" Check RUNPOD_API_KEY ({KEYS}).",
    403: f" Check RUNPOD_API_KEY ({KEYS}).",
    404: " Check the endpoint's id.",
}


class Api:
    """The job API of one endpoint. Arguments that are None come from the environment, under the SDK's own names.

    Raises ``CallFailed`` if one is missing or cannot be used.
    """

    def __init__(self, endpoint_id: str | None, api_key: str | None, base_url: str | None) -> None:
        key = _given(api_key, "RUNPOD_API_KEY", f"make a key at {KEYS}, under API Keys")
        if not (key.isascii() and key.isprintable()):
            raise CallFailed(f"RUNPOD_API_KEY is not an API key: make one at {KEYS}, under API Keys.")
        endpoint_id = _given(endpoint_id, "RUNPOD_ENDPOINT_ID", "the endpoint's page in the Runpod console shows it")
        base_url = base_url or os.environ.get("RUNPOD_ENDPOINT_BASE_URL") or BASE_URL
        address = web_address(base_url)
        if address is None:
            raise CallFailed(f"RUNPOD_ENDPOINT_BASE_URL should be a web address such as {BASE_URL}.")
        self.endpoint_id = endpoint_id
        self._host = address.host
        self._url = f"{base_url.rstrip('/')}/{quote(endpoint_id, safe='')}"
        http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
            event_hooks={"request": [self._turn], "response": [self._hold]},
        )
        self._http = Http(http, secret=key, hints=HINTS)
        self._next = 0.0

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    async def call(self, method: str, path: str, body: bytes = b"", held: float = 0) -> dict[str, Any]:
        """Return the JSON object that the endpoint answers; it may hold its answer back for ``held`` seconds.

        Raises ``CallFailed``.
        """
        answer = await self._http.json(method, self._url + path, body, held)
        if not isinstance(answer, dict):
            raise CallFailed(f"{self._host} did not answer with a JSON object: is RUNPOD_ENDPOINT_BASE_URL right?")
        return answer

    async def tell(self, method: str, path: str, body: bytes = b"") -> None:
        """Make a call of whose answer only the status matters. Raises ``CallFailed``."""
        await self._http.tell(method, self._url + path, body)

    async def _turn(self, _: httpx.Request) -> None:
        now = asyncio.get_running_loop().time()
        self._next = max(now, self._next + GAP)
        await asyncio.sleep(self._next - now)

    async def _hold(self, response: httpx.Response) -> None:
        """Delay all calls by an error's ``Retry-After`` in seconds; for a date, the retries' own pauses have to do."""
        seconds = response.headers.get("retry-after", "")
        if seconds.isascii() and seconds.isdecimal() and response.is_error:
            until = asyncio.get_running_loop().time() + min(float(seconds), LONGEST_HOLD)
            self._next = max(self._next, until)


def _given(value: str | None, variable: str, where: str) -> str:
    if given := (value or os.environ.get(variable, "")).strip():
        return given
    raise CallFailed(f"{variable} is not set: {where}.")
