"""A server between real workers and a real local endpoint, which does to requests what a test plans."""

import asyncio
import io
import sys
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Self

from aiohttp import ClientSession, web

from aggregating_worker.local.workers import protocol

Forward = Callable[[], Awaitable[web.Response]]
"""Hands the request on to the endpoint, and returns its answer."""
Fault = Callable[[web.BaseRequest, Forward], Awaitable[web.StreamResponse]]
"""Handles a request in the endpoint's place, or hands it on."""


async def passes(_: web.BaseRequest, forward: Forward) -> web.Response:
    """Do nothing to it."""
    return await forward()


def answers(
    status: int,
    body: str = "",
    kind: str = "application/json",
    *,
    headers: dict[str, str] | None = None,
    arrives: bool = False,
) -> Fault:
    """Answer in the endpoint's place, which gets the request all the same if it ``arrives``."""

    async def answer(_: web.BaseRequest, forward: Forward) -> web.Response:
        if arrives:
            await forward()
        return web.Response(status=status, text=body, content_type=kind, headers=headers)

    return answer


def cut_off(*, arrives: bool = False) -> Fault:
    """Close the connection without an answer; the endpoint gets the request all the same if it ``arrives``."""

    async def cut(request: web.BaseRequest, forward: Forward) -> web.Response:
        if arrives:
            await forward()
        if request.transport is not None:
            request.transport.abort()
        return web.Response()

    return cut


class Held:
    """Keeps a request waiting until it is released; the endpoint has got it by then if it ``arrives``."""

    def __init__(self, *, arrives: bool = False) -> None:
        self.reached: Future[None] = Future()
        self._released: Future[None] = Future()
        self._arrives = arrives

    async def __call__(self, _: web.BaseRequest, forward: Forward) -> web.Response:
        answer = await forward() if self._arrives else None
        self.reached.set_result(None)
        await asyncio.shield(asyncio.wrap_future(self._released))
        return answer or await forward()

    def release(self) -> None:
        """Let the request go on. Any thread may call this."""
        self._released.set_result(None)


class Faulty:
    """The server, as a context manager; it serves from a thread of its own, and forwards to ``endpoint_url``."""

    def __init__(self) -> None:
        self.endpoint_url = ""
        self.seen: Counter[str] = Counter()
        """How many requests there were by route: ``job-take``, ``job-stream``, ``job-done``."""
        self.open: Counter[str] = Counter()
        """How many of them have no answer yet."""
        self._planned: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self._port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty")

    def plan(self, route: str, *faults: Fault) -> None:
        """Have the next requests for ``route`` meet ``faults``, one each, and forget what was seen of it."""
        self.seen[route] = 0
        self._planned[route] = deque(faults)

    def met(self, route: str) -> bool:
        """Whether every fault planned for ``route`` was met."""
        return not self._planned[route]

    @property
    def command(self) -> list[str]:
        """The command of this project's worker, which takes this server for the endpoint."""
        ours = protocol(f"http://127.0.0.1:{self._port}/v2/local", "", "").items()
        webhooks = [f"{name}={url}" for name, url in ours if name.startswith("RUNPOD_WEBHOOK_")]
        return ["env", *webhooks, sys.executable, "-u", "handler.py"]

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._open())
        self.come_back()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_away()
        self._run(self._session.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def wait(self, event: asyncio.Event) -> None:
        """Wait for an event of a fault's. Any thread may call this."""
        self._run(asyncio.wait_for(event.wait(), 20))

    def set(self, event: asyncio.Event) -> None:
        """Set an event of a fault's. Any thread may call this."""
        self._loop.call_soon_threadsafe(event.set)

    def come_back(self) -> None:
        """Listen, at the same port as before."""
        self._run(self._listen())

    def go_away(self) -> None:
        """Close every connection, and refuse new ones."""
        self._run(self._hang_up())

    def _run(self, what: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result()

    async def _open(self) -> None:
        self._session = ClientSession()

    async def _listen(self) -> None:
        self._server = web.Server(self._serve, handler_cancellation=True, access_log=None)
        self._listener = await self._loop.create_server(self._server, "127.0.0.1", self._port)
        self._port = self._listener.sockets[0].getsockname()[1]

    async def _hang_up(self) -> None:
        self._listener.close()
        await self._server.shutdown(0.01)  # 0 would wait for the polls to be answered

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        route = request.path.split("/")[3]
        self.seen[route] += 1
        self.open[route] += 1
        try:
            return await self._answer(route, request.clone(client_max_size=0))  # and not the 1 MiB that aiohttp takes
        finally:
            self.open[route] -= 1

    async def _answer(self, route: str, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()

        async def forward() -> web.Response:
            url = self.endpoint_url + request.raw_path.removeprefix("/v2/local")
            secret = {"Authorization": request.headers["Authorization"]}
            async with self._session.request(request.method, url, data=io.BytesIO(body), headers=secret) as answer:
                return web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)

        planned = self._planned[route]
        return await (planned.popleft() if planned else passes)(request, forward)
