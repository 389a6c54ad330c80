"""The local endpoint: queue, client API, worker protocol, page and workers on one port."""

import asyncio
import socket
import sys
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from watchfiles import PythonFilter, awatch

from aggregating_worker.local.batch import BatchQueue
from aggregating_worker.local.batch_api import batch_api
from aggregating_worker.local.client_api import client_api
from aggregating_worker.local.form import Form
from aggregating_worker.local.guard import Guard, key_check
from aggregating_worker.local.launch import Command, Image
from aggregating_worker.local.openai_api import openai_api
from aggregating_worker.local.page import page_api, page_files
from aggregating_worker.local.protocol import Protocol
from aggregating_worker.local.queue import Queue
from aggregating_worker.local.routes import Router, Routes
from aggregating_worker.local.worker_api import worker_api
from aggregating_worker.local.workers import WorkerProcess, Workers

API = "/v2/local"
DATA = (".json", ".toml", ".txt", ".yaml", ".yml")
"""Files that a worker may read, besides code. Files that a client writes, such as ``.jsonl``, are not."""
NOT_THEIRS = ("docs", "tests", "vendor")
"""Folders that workers do not read."""
KEEP_ALIVE = 75
"""Seconds after which an idle connection is closed. The SDK's HTTP client (aiohttp) uses one again within 15 s, and
does not repeat a POST that finds it closed: a handler that blocks its event loop would lose its result."""


class LocalEndpoint:
    """An endpoint named ``local``, as a context manager; it serves from a thread of its own.

    ``command`` runs a worker (default: ``python handler.py``), with ``env`` added to its environment, in a folder of
    its own with a copy of what is in ``cwd`` (default: the current folder). An ``Image`` runs one in a container with
    ``env``. ``workers`` of them are kept alive, and their output goes to ``log`` (default: this process's output).
    ``batch_workers`` more are started with the first batch, for batches only.

    ``port`` 0 takes a free one. Callers need ``api_key``, or any key if it is None. Every answer takes ``distance``
    seconds longer, as if the endpoint were that far away. With ``reload``, workers are replaced when a file in ``cwd``
    changes that they may read.

    Entering raises ``OSError`` if the port is taken or the command cannot be run.
    """

    def __init__(
        self,
        command: Sequence[str] | Image | None = None,
        *,
        workers: int = 1,
        batch_workers: int = 1,
        port: int = 0,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        log: IO[bytes] | None = None,
        api_key: str | None = None,
        distance: float = 0,
        reload: bool = False,
    ) -> None:
        ours = isinstance(command, Image) or not command
        cwd = cwd or Path.cwd()
        launch = command if isinstance(command, Image) else Command(command or [sys.executable, "-u", "handler.py"])
        self.queue = Queue()
        self.workers = Workers(self.queue, launch, workers, cwd, env or {}, log)
        self.batch_queue = Queue()
        self.batch_workers = Workers(self.batch_queue, launch, batch_workers, cwd, env or {}, log, name="batch-worker")
        self._batches = BatchQueue(self.batch_queue)
        self._form = Form(cwd if ours else None, env or {})
        self._host = launch.host
        self._port = port
        self._api_key = api_key
        self._distance = distance
        self._watched = cwd if reload else None

    @property
    def base_url(self) -> str:
        """The ``RUNPOD_ENDPOINT_BASE_URL`` for the SDK's clients; the endpoint's id is ``local``."""
        return f"http://127.0.0.1:{self._port}/v2"

    @property
    def page_url(self) -> str:
        """The address of the page for a browser."""
        return f"http://127.0.0.1:{self._port}/"

    @property
    def url(self) -> str:
        """The address of the job API."""
        return f"{self.base_url}/local"

    def __enter__(self) -> Self:
        listener = socket.create_server(("127.0.0.1", self._port))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or an answer in two parts waits for 40 ms
        self._port = listener.getsockname()[1]
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._app(),
                log_level="warning",
                access_log=False,
                proxy_headers=False,
                timeout_graceful_shutdown=1,
                timeout_keep_alive=KEEP_ALIVE,
                lifespan="off",
                http=Protocol,
                ws="none",
            )
        )
        entered: Future[None] = Future()

        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            serving = asyncio.create_task(self._server.serve([listener]))
            watching = asyncio.create_task(self._watch())
            try:
                await self.workers.start(self._port)
                self.batch_workers.port = self._port
                entered.set_result(None)
            except Exception as error:
                self._server.should_exit = True
                entered.set_exception(error)
            await serving
            watching.cancel()

        # A daemon: if an interrupt leaves this thread behind, it must not keep the process alive.
        self._thread = threading.Thread(target=asyncio.run, args=(serve(),), name="local endpoint", daemon=True)
        try:
            self._thread.start()
            entered.result()
        except Exception:
            self._thread.join()
            raise
        except (KeyboardInterrupt, SystemExit):  # while the workers are being started
            if self._thread.is_alive() and entered.exception() is None:
                self.__exit__(None, None, None)
            raise
        return self

    def terminate(self, worker: WorkerProcess) -> None:
        """Ask a worker to finish its jobs and exit; ``worker.exited`` tells when. Any thread may call this."""
        self._loop.call_soon_threadsafe(self.workers.terminate, worker)

    def kill(self) -> None:
        """End all workers now, even with a job in hand. Any thread may call this."""
        self._run(*(pool.kill() for pool in (self.workers, self.batch_workers)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._run(*(pool.stop() for pool in (self.workers, self.batch_workers)))
        finally:  # after a second interrupt, too, no worker may be left
            self.kill()
            for queue in (self.queue, self.batch_queue):
                self._loop.call_soon_threadsafe(queue.close)
            self._server.should_exit = True
            self._thread.join()

    def _run(self, *what: Coroutine[Any, Any, None]) -> None:
        async def all_of_it() -> None:
            await asyncio.gather(*what)

        asyncio.run_coroutine_threadsafe(all_of_it(), self._loop).result()

    async def _watch(self) -> None:
        if self._watched is None:
            return
        theirs = PythonFilter(ignore_paths=[self._watched / name for name in NOT_THEIRS], extra_extensions=DATA)
        try:
            async for _ in awatch(self._watched, watch_filter=theirs):
                for each in (self.workers, self.batch_workers, self._form):
                    each.reload()
        except OSError as error:
            print(f"--reload sees no changes any more ({error}): start the endpoint again.", file=sys.stderr)

    def _app(self) -> ASGIApp:
        check_key = key_check(self._api_key)
        workers, callers = Routes(API, lambda _: None), Routes(API, check_key)
        worker_api(workers, lambda worker_id: self.workers.find(worker_id) or self.batch_workers.find(worker_id))
        client_api(callers, self.queue, self.workers)
        openai_api(callers, self.queue)
        batch_api(callers, self._batches)
        page, fetched = Routes("", lambda _: None), Routes("", check_key)
        page_files(page)
        page_api(fetched, self.queue, self.workers, self._batches, self._form, lambda: self._server.should_exit)
        self._batches.on_finalized = self.batch_workers.start_once

        app = Guard(Router([*workers.routes, *callers.routes, *page.routes, *fetched.routes]), self._host)
        return Distance(app, self._distance) if self._distance else app


class Distance:
    """Holds every request back for a round trip's time."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(self._seconds)
        await self._app(scope, receive, send)
