"""The job API of one endpoint: its address, the key and the pace.

A call whose connection broke is made again, ``POST /run`` too: its job may have been queued all the same, and then it
runs for nobody. That costs work, where giving up would cost results.
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
"""Seconds for which a ``Retry-After`` is obeyed at most."""
GAP = 0.02
"""Seconds between two calls of one client: 500 in 10 s, where the platform takes 1,000 on ``/run`` and 2,000 on
``/stream`` (Runpod docs, serverless/endpoints/operations)."""
HINTS = {
    401: f" Check RUNPOD_API_KEY ({KEYS}).",
    403: f" Check RUNPOD_API_KEY ({KEYS}).",
    404: " Check the endpoint's id.",
}


class Api:
    """The job API of one endpoint. What is not given comes from the environment, under the SDK's own names.

    Raises ``CallFailed`` if something is missing or cannot be used.
    """

    def __init__(self, endpoint_id: str | None, api_key: str | None, base_url: str | None) -> None:
        key = _given(api_key, "RUNPOD_API_KEY", f"get a key at {KEYS}")
        if not (key.isascii() and key.isprintable()):
            raise CallFailed(f"RUNPOD_API_KEY is not a key, which has plain characters only: get one at {KEYS}.")
        endpoint_id = _given(
            endpoint_id, "RUNPOD_ENDPOINT_ID", "it stands on the endpoint's page in the Runpod console"
        )
        base_url = base_url or os.environ.get("RUNPOD_ENDPOINT_BASE_URL") or BASE_URL
        address = web_address(base_url)
        if address is None:
            raise CallFailed(f"RUNPOD_ENDPOINT_BASE_URL should be a web address such as {BASE_URL}.")
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
        """Return the JSON object that the endpoint answers, having ``held`` it back for so many seconds at most.

        Raises ``CallFailed``.
        """
        answer = await self.ask(method, path, body, held)
        if not isinstance(answer, dict):
            raise CallFailed(f"{self._host} did not answer with a JSON object: is the address right?")
        return answer

    async def ask(self, method: str, path: str, body: bytes = b"", held: float = 0) -> Any:
        """Return the JSON value that the endpoint answers."""
        return await self._http.json(method, self._url + path, body, held)

    async def tell(self, method: str, path: str, body: bytes = b"") -> None:
        """Make a call that is answered with a status, whatever else."""
        await self._http.tell(method, self._url + path, body)

    async def _turn(self, _: httpx.Request) -> None:
        now = asyncio.get_running_loop().time()
        self._next = max(now, self._next + GAP)
        await asyncio.sleep(self._next - now)

    async def _hold(self, response: httpx.Response) -> None:
        """Hold back every call for as long as an answer asks for; one that gives a date leaves it to the backoff."""
        seconds = response.headers.get("retry-after", "")
        if seconds.isascii() and seconds.isdecimal() and response.is_error:
            until = asyncio.get_running_loop().time() + min(float(seconds), LONGEST_HOLD)
            self._next = max(self._next, until)


def _given(value: str | None, variable: str, where: str) -> str:
    if given := (value or os.environ.get(variable, "")).strip():
        return given
    raise CallFailed(f"{variable} is not set: {where}.")
