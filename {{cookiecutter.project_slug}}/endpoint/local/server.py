"""The local endpoint: queue, client API, worker protocol, page and workers on one port."""

import asyncio
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from endpoint.local.body import Answer
from endpoint.local.client_api import client_api
from endpoint.local.form import Form
from endpoint.local.launch import Command, Image
from endpoint.local.page import page_api
from endpoint.local.queue import Queue
from endpoint.local.worker_api import worker_api
from endpoint.local.workers import Worker, Workers

PROJECT = Path(__file__).parents[2]


class LocalEndpoint:
    """An endpoint named ``local``, as a context manager; it serves from a thread of its own.

    ``command`` is a worker while it runs (default: this project's ``handler.py``), in ``cwd`` with ``env`` added to its
    environment; or an ``Image`` is, in a container that is given ``env``. ``workers`` of them are kept alive, and their
    output goes to ``log`` (None: where this process's goes).
    ``port`` 0 takes a free one. Only ``api_key`` is let in, or any key if it is None. Every answer takes ``distance``
    seconds longer, as if the endpoint were that far away. Entering raises ``OSError`` if the port is taken or the
    command cannot be run.
    """

    def __init__(
        self,
        command: Sequence[str] | Image | None = None,
        *,
        workers: int = 1,
        port: int = 0,
        cwd: Path = PROJECT,
        env: Mapping[str, str] | None = None,
        log: IO[bytes] | None = None,
        api_key: str | None = None,
        distance: float = 0,
    ) -> None:
        self.queue = Queue()
        launch = command if isinstance(command, Image) else Command(command or [sys.executable, "-u", "handler.py"])
        self.workers = Workers(self.queue, launch, workers, cwd, env or {}, log)
        self._form = Form(cwd if isinstance(command, Image) or not command else None, env or {})
        self._port = port
        self._api_key = api_key
        self._distance = distance

    @property
    def base_url(self) -> str:
        """What ``RUNPOD_ENDPOINT_BASE_URL`` should be for the SDK's clients; the endpoint's id is ``local``."""
        return f"http://127.0.0.1:{self._port}/v2"

    @property
    def page_url(self) -> str:
        """Where a browser sees the queue, the workers and the results."""
        return f"http://127.0.0.1:{self._port}/"

    @property
    def url(self) -> str:
        """Where the job API is served."""
        return f"{self.base_url}/local"

    def __enter__(self) -> Self:
        listener = socket.create_server(("127.0.0.1", self._port))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or an answer in two parts waits for 40 ms
        self._port = listener.getsockname()[1]
        self._server = uvicorn.Server(
            uvicorn.Config(self._app(), log_level="warning", timeout_graceful_shutdown=1, lifespan="off")
        )
        entered: Future[None] = Future()

        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            serving = asyncio.create_task(self._server.serve([listener]))
            try:
                await self.workers.start(self._port)
                entered.set_result(None)
            except OSError as error:
                self._server.should_exit = True
                entered.set_exception(error)
            await serving

        self._thread = threading.Thread(target=asyncio.run, args=(serve(),), name="local endpoint")
        self._thread.start()
        try:
            entered.result()
        except OSError:
            self._thread.join()
            raise
        return self

    def terminate(self, worker: Worker) -> None:
        """Ask a worker to finish its jobs and exit; ``worker.exited`` tells when. Any thread may call this."""
        self._loop.call_soon_threadsafe(self.workers.terminate, worker)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            asyncio.run_coroutine_threadsafe(self.workers.stop(), self._loop).result()
        finally:  # a second interrupt, too, ends here: with every worker gone
            asyncio.run_coroutine_threadsafe(self.workers.kill(), self._loop).result()
            self._loop.call_soon_threadsafe(self.queue.close)
            self._server.should_exit = True
            self._thread.join()

    def _app(self) -> FastAPI:
        app = FastAPI(title="Local endpoint", default_response_class=Answer)
        app.include_router(client_api(self.queue, self.workers, self._api_key), prefix="/v2/local")
        app.include_router(worker_api(self.queue, self.workers), prefix="/v2/local")
        app.include_router(
            page_api(self.queue, self.workers, self._form, self._api_key, lambda: self._server.should_exit)
        )

        @app.exception_handler(HTTPException)
        async def refuse(_: Request, error: HTTPException) -> Answer:
            return Answer({"error": error.detail}, status_code=error.status_code)

        @app.exception_handler(RequestValidationError)
        async def refuse_parameter(_: Request, error: RequestValidationError) -> Answer:
            faults = "; ".join(f"{fault['loc'][-1]}: {fault['msg']}" for fault in error.errors())
            return Answer({"error": f"bad request: {faults}"}, status_code=400)

        if self._distance:
            app.add_middleware(Distance, seconds=self._distance)
        return app


class Distance:
    """Holds every request back for a round trip's time."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(self._seconds)
        await self._app(scope, receive, send)
