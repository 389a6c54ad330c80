"""Starts the workers in production mode, and replaces those that die, ask for it, or do not stop a job when told."""

import asyncio
import ctypes
import os
import secrets
import signal
import sys
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from aggregating_worker.local.launch import Command, Image
from aggregating_worker.local.queue import Queue
from aggregating_worker.log import LOCAL

_libc = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1
"""From <linux/prctl.h>."""
GRACE = 20.0
"""Seconds that a worker has for its jobs after SIGTERM."""
AGAIN = 10.0
"""Seconds until another is started in the place of a worker that has died at its start."""
LOOK = 0.5
"""Seconds between two looks at whether a worker has done its other jobs."""
ALLOWED = ("ALLOW_CPU", "MODEL_DOWNLOAD")
"""Variables by which a worker may do here what it refuses on the platform: run without GPU, fetch its model."""
PING = 4.0
"""Seconds between two pings of a worker; each names the jobs that it has in hand."""


@dataclass(eq=False)
class WorkerProcess:
    """One worker: its process, or the ``docker run`` of its container. It is ready from its first poll on."""

    id: str
    secret: str
    folder: Path
    process: asyncio.subprocess.Process
    pool: "Workers"
    exited: Future[int] = field(default_factory=Future)
    """Its exit status, for those who wait in another thread."""
    ready: bool = False
    stopping: bool = False
    outdated: bool = False
    """Whether the project's files have changed since it was started."""

    @property
    def queue(self) -> Queue:
        """The queue from which it takes jobs."""
        return self.pool.queue

    def is_known_by(self, given: str) -> bool:
        """Tell whether ``given`` is its secret."""
        return secrets.compare_digest(given.removeprefix("Bearer ").encode(), self.secret.encode())

    def seen(self) -> None:
        """Note a poll."""
        if not self.ready:
            self.ready = True
            self.pool.deaths = 0
        self.pool.launch_works |= not self.outdated

    def end(self) -> None:
        """Ask it to finish its jobs and exit."""
        self.queue.retire(self.id)
        with suppress(ProcessLookupError):
            self.process.terminate()

    def refresh(self) -> None:
        """Replace it once it has finished its jobs, or after ``GRACE``."""
        self.end()
        asyncio.get_running_loop().call_later(GRACE, self.pool.replace, self.id)

    def kill(self) -> None:
        """End it now, with all processes that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


class Workers:
    """Keeps ``count`` workers of ``queue`` alive. One that dies at its start is replaced after a pause."""

    def __init__(
        self,
        queue: Queue,
        launch: Command | Image,
        count: int,
        cwd: Path,
        env: Mapping[str, str],
        log: IO[bytes] | None,
        name: str = "worker",
    ) -> None:
        self.queue = queue
        self.deaths = 0
        """How many have died at their start since the last one that got ready."""
        self.launch_works = False
        self._known: dict[str, WorkerProcess] = {}
        self._launch = launch
        self._count = count
        self._cwd = cwd
        self._env = env
        self._log = log
        self._kind = name
        self.port = 0
        self._started = 0
        self._starting: asyncio.Task[None] | None = None
        self._stopped = False
        self._watchers: set[asyncio.Task[None]] = set()
        queue.stops.on_ignored = self.replace_when_free

    @property
    def running(self) -> list[WorkerProcess]:
        """The workers that have been started and have not ended."""
        return [*self._known.values()]

    @property
    def alive(self) -> bool:
        """Whether any worker runs or is being replaced; not during the pause after one has died at its start."""
        return bool(self._watchers)

    def find(self, worker_id: str) -> WorkerProcess | None:
        """Return a running worker by its id."""
        return self._known.get(worker_id)

    async def start(self, port: int) -> None:
        """Start all workers, for the endpoint at ``port``. Raises ``OSError`` if their command cannot be run."""
        self.port = port
        for _ in range(self._count):
            await self._start_one()

    def start_once(self) -> None:
        """Start all workers in the background, unless they have been started."""
        if self._starting is None:
            self._starting = asyncio.create_task(self.start(self.port))

    async def _start_one(self) -> None:
        self._started += 1
        worker_id = f"{self._kind}-{self._started}"
        secret = secrets.token_urlsafe()
        url = f"http://{self._launch.host}:{self.port}/v2/local"
        allowed = {name: os.environ.get(name, "1") for name in ALLOWED}
        env = {**allowed, **self._env, **protocol(url, worker_id, secret)}
        folder = await asyncio.to_thread(self._launch.folder, self._cwd)
        process = await self._run(worker_id, folder, env)
        worker = self._known[worker_id] = WorkerProcess(worker_id, secret, folder, process, self)
        if self._stopped:  # while the process was being started
            worker.kill()
        self._watchers.add(watcher := asyncio.create_task(self._watch(worker)))
        watcher.add_done_callback(self._watchers.discard)

    async def _run(self, worker_id: str, folder: Path, env: Mapping[str, str]) -> asyncio.subprocess.Process:
        try:
            return await asyncio.create_subprocess_exec(
                *self._launch.line(self._name(worker_id), env),
                cwd=folder,
                env={**os.environ, **env},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,  # so that its children, such as the SDK's ping process, can be ended with it
                preexec_fn=_end_with_the_endpoint if sys.platform == "linux" else None,
            )
        except OSError:
            await self._launch.clear(self._name(worker_id), folder)
            raise

    async def _watch(self, worker: WorkerProcess) -> None:
        status = await worker.process.wait()
        worker.kill()
        await self._launch.clear(self._name(worker.id), worker.folder)
        del self._known[worker.id]
        self.queue.lose(worker.id)
        worker.exited.set_result(status)
        if worker.stopping or self._stopped:
            return
        self.deaths += not (worker.ready or worker.outdated)
        if worker.outdated or (self.launch_works and (worker.ready or self.deaths == 1)):
            await self._start_one()
        elif not worker.ready:
            self.say(
                f"{worker.id} ended before it asked for a job, with status {status}: its output above says why. "
                f"Another one starts in {AGAIN:.0f} s."
            )
            asyncio.get_running_loop().call_later(AGAIN, self._fill)

    def say(self, sentence: str) -> None:
        """Write ``sentence`` where the workers write their output."""
        if self._log is None:
            print(sentence, file=sys.stderr, flush=True)
        else:
            os.write(self._log.fileno(), f"{sentence}\n".encode())

    def reload(self) -> None:
        """Replace each worker, once it has finished its jobs, by one that reads the files as they are now."""
        if not self._started or self._stopped:
            return
        self.launch_works = False
        for worker in self.running:
            if not worker.outdated:
                worker.outdated = True
                worker.end()
        self._fill()

    def _fill(self) -> None:
        """Start the workers that are missing, in the background."""
        for _ in () if self._stopped else range(len(self._watchers), self._count):
            self._watchers.add(starting := asyncio.create_task(self._start_one()))
            starting.add_done_callback(self._watchers.discard)

    def _name(self, worker_id: str) -> str:
        return f"local-{os.getpid()}-{self.port}-{worker_id}"

    def replace(self, worker_id: str) -> None:
        """End a worker now, if it is still there; it is replaced."""
        if worker := self.find(worker_id):
            worker.kill()

    def replace_when_free(self, worker_id: str) -> None:
        """Give a worker no more jobs, and end it once it has finished those that it should not stop; it is replaced.

        An old SDK (1.7.0) hears of no stop: at once, its worker would lose the other jobs that it has in hand.
        """
        if self.queue.held_by(worker_id):
            self.queue.spare(worker_id)
            asyncio.get_running_loop().call_later(LOOK, self.replace_when_free, worker_id)
        else:
            self.replace(worker_id)

    def terminate(self, worker: WorkerProcess) -> None:
        """Ask a worker to finish its jobs and exit; it is not replaced."""
        worker.stopping = True
        worker.end()

    async def stop(self) -> None:
        """End all workers: those without a job at once, the others when theirs is delivered, or after ``GRACE``."""
        self._stopped = True
        for worker in self.running:
            self.terminate(worker)
            if not self.queue.held_by(worker.id):
                worker.kill()
        if self._watchers:
            await asyncio.wait(self._watchers, timeout=GRACE)
        await self.kill()

    async def kill(self) -> None:
        """End all workers now."""
        self._stopped = True
        for worker in self.running:
            worker.kill()
        while left := {task for task in (self._starting, *self._watchers) if task and not task.done()}:
            await asyncio.wait(left)  # one that was being started has a watcher only then

    def states(self) -> dict[str, int]:
        """Count the workers by the platform's names for their states."""
        ready = [worker for worker in self.running if worker.ready]
        busy = sum(bool(self.queue.held_by(worker.id)) for worker in ready)
        return {
            "idle": len(ready) - busy,
            "initializing": len(self.running) - len(ready),
            "ready": len(ready),
            "running": busy,
            "throttled": 0,
            "unhealthy": min(self.deaths, self._count),
        }


def protocol(url: str, worker_id: str, secret: str) -> dict[str, str]:
    """Return the variables with which the platform starts a worker; the SDK fills in the ``$`` names.

    The SDK sends ``RUNPOD_AI_API_KEY`` with each request, unless ``runpod config`` has stored another key on this
    machine (1.12.0, ``http_client.py``): then the secret goes into the addresses.
    """
    query = f"gpu=none&secret={secret}" if Path("~/.runpod/config.toml").expanduser().exists() else "gpu=none"
    return {
        "RUNPOD_ENDPOINT_ID": LOCAL,
        "RUNPOD_POD_ID": worker_id,
        "RUNPOD_AI_API_KEY": secret,
        "RUNPOD_WEBHOOK_GET_JOB": f"{url}/job-take/$ID?{query}",
        "RUNPOD_WEBHOOK_POST_OUTPUT": f"{url}/job-done/$RUNPOD_POD_ID/$ID?{query}",
        "RUNPOD_WEBHOOK_POST_STREAM": f"{url}/job-stream/$RUNPOD_POD_ID/$ID?{query}",
        "RUNPOD_WEBHOOK_PING": f"{url}/ping/$RUNPOD_POD_ID",
        "RUNPOD_PING_INTERVAL": f"{PING * 1000:.0f}",
        "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
        "RUNPOD_SKIP_GPU_CHECK": "true",
        "RUNPOD_LOG_LEVEL": os.environ.get("RUNPOD_LOG_LEVEL", "INFO"),
        "PYTHONUNBUFFERED": "1",
    }


def _end_with_the_endpoint() -> None:
    """Have SIGTERM sent to this process when its parent dies: the SDK would poll a dead endpoint without a pause."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
