"""The job API of one endpoint: its address, the key and the pace of calls.

Each call is made again while its error may pass, but for one: a job is sent again only where the platform surely did
not take it, since each that it takes is paid for.
"""

import asyncio
import os
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx2

from aggregating_worker.client.http import CallFailed, Http, JobUnknown, web_address
from aggregating_worker.client.job import checked
from aggregating_worker.proxies import UNUSABLE
from aggregating_worker.sentence import KEYS, one_line

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

    Raises ``CallFailed`` if one is missing or cannot be used. ``told`` gets a sentence while nothing answers.
    """

    def __init__(
        self,
        endpoint_id: str | None,
        api_key: str | None,
        base_url: str | None,
        told: Callable[[str], object] = lambda _: None,
    ) -> None:
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
        trust = httpx2.create_ssl_context()  # one for both: it takes as long to make as a client

        def connections(kept: int | None) -> Http:
            http = httpx2.AsyncClient(
                headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
                event_hooks={"response": [self._hold]},
                limits=httpx2.Limits(max_keepalive_connections=kept),
                verify=trust,
            )
            return Http(http, secret=key, hints=HINTS, turn=self._turn, told=told)

        try:
            self._http = connections(kept=20)
            # A connection that has been closed at the other end looks just like an answer that was lost.
            self._fresh = connections(kept=0)
        except (httpx2.InvalidURL, ImportError, ValueError) as error:
            raise CallFailed(f"{UNUSABLE}: {one_line(str(error))}.") from None
        self._next = 0.0

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()
        await self._fresh.close()

    async def submit(self, operation: str, job: bytes, held: float = 0) -> dict[str, Any]:
        """Send a job to ``run`` or ``runsync``, on a new connection, and return the state in the answer.

        Raises ``JobUnknown`` if the platform may have taken the job, but its answer does not say so, and ``CallFailed``
        if it has not taken it.
        """
        try:
            return checked(
                self._object(await self._fresh.json("POST", f"{self._url}/{operation}", job, held, once=True))
            )
        except CallFailed as error:
            if error.untaken:
                raise
            unknown = f"{error} The job may be queued all the same, and is not sent again: it would be paid for twice."
            if operation == "runsync" and error.status in (504, 524):
                unknown += " For a job that takes so long, use run: it is answered at once."
            raise JobUnknown(unknown, error.status) from None

    async def call(self, method: str, path: str, body: bytes = b"") -> dict[str, Any]:
        """Return the JSON object that the endpoint answers. Raises ``CallFailed``."""
        return self._object(await self._http.json(method, self._url + path, body))

    def _object(self, answer: Any) -> dict[str, Any]:
        if not isinstance(answer, dict):
            raise CallFailed(f"{self._host} did not answer with a JSON object: is RUNPOD_ENDPOINT_BASE_URL right?")
        return answer

    async def tell(self, method: str, path: str, body: bytes = b"") -> None:
        """Make a call of whose answer only the status matters. Raises ``CallFailed``."""
        await self._http.tell(method, self._url + path, body)

    async def _turn(self) -> None:
        now = asyncio.get_running_loop().time()
        self._next = max(now, self._next + GAP)
        await asyncio.sleep(self._next - now)

    async def _hold(self, response: httpx2.Response) -> None:
        """Delay all calls by an error's ``Retry-After`` in seconds; for a date, the retries' own pauses have to do."""
        seconds = response.headers.get("retry-after", "")
        if seconds.isascii() and seconds.isdecimal() and response.is_error:
            until = asyncio.get_running_loop().time() + min(float(seconds), LONGEST_HOLD)
            self._next = max(self._next, until)


def _given(value: str | None, variable: str, where: str) -> str:
    if given := (value or os.environ.get(variable, "")).strip():
        return given
    raise CallFailed(f"{variable} is not set: {where}.")
