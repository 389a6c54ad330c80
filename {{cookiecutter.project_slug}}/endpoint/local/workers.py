"""The workers: started in their production mode, watched, replaced when they die."""

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from endpoint.local.launch import Command, Image
from endpoint.local.queue import Queue

_libc = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1
"""From <linux/prctl.h>."""
GRACE = 20.0
"""Seconds that a worker has for its jobs after SIGTERM."""


@dataclass(eq=False)
class Worker:
    """One worker and the process that is it, or that stands for its container. It is ready from its first poll on."""

    id: str
    process: asyncio.subprocess.Process
    exited: Future[int] = field(default_factory=Future)
    """Its exit status, for whoever waits in another thread."""
    ready: bool = False
    stopping: bool = False


class Workers:
    """Keeps ``count`` workers polling, replacing those that die once one has become ready."""

    def __init__(
        self,
        queue: Queue,
        launch: Command | Image,
        count: int,
        cwd: Path,
        env: Mapping[str, str],
        log: IO[bytes] | None,
    ) -> None:
        self.running: list[Worker] = []
        self.unhealthy = 0
        self._queue = queue
        self._launch = launch
        self._count = count
        self._cwd = cwd
        self._env = env
        self._log = log
        self._started = 0
        self._launch_works = False
        self._stopped = False
        self._watchers: set[asyncio.Task[None]] = set()

    @property
    def alive(self) -> bool:
        """Whether any worker runs or is being replaced."""
        return bool(self._watchers)

    async def start(self, port: int) -> None:
        """Start all workers, for the endpoint at ``port``. Raises ``OSError`` if their command cannot be run."""
        self._port = port
        for _ in range(self._count):
            await self._start_one()

    async def _start_one(self) -> None:
        self._started += 1
        worker_id = f"worker-{self._started}"
        env = {**self._env, **protocol(f"http://{self._launch.host}:{self._port}/v2/local", worker_id)}
        process = await asyncio.create_subprocess_exec(
            *self._launch.line(self._name(worker_id), env),
            cwd=self._cwd,
            env={**os.environ, **env},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,  # so that what the worker starts, the SDK's ping process first, ends with it
            preexec_fn=_end_with_the_endpoint if sys.platform == "linux" else None,
        )
        self.running.append(worker := Worker(worker_id, process))
        if self._stopped:  # while the process was being started
            _kill(worker)
        self._watchers.add(watcher := asyncio.create_task(self._watch(worker)))
        watcher.add_done_callback(self._watchers.discard)

    async def _watch(self, worker: Worker) -> None:
        status = await worker.process.wait()
        _kill(worker)
        await self._launch.clear(self._name(worker.id))
        self.running.remove(worker)
        self._queue.lose(worker.id)
        worker.exited.set_result(status)
        if self._launch_works and not (worker.stopping or self._stopped):
            await self._start_one()
        elif not worker.ready:
            self.unhealthy += 1

    def _name(self, worker_id: str) -> str:
        return f"local-{os.getpid()}-{self._port}-{worker_id}"

    def seen(self, worker_id: str) -> None:
        """Note a worker's poll."""
        for worker in self.running:
            if worker.id == worker_id:
                worker.ready = self._launch_works = True

    def terminate(self, worker: Worker) -> None:
        """Ask a worker to finish its jobs and exit; it is not replaced."""
        worker.stopping = True
        self._queue.retire(worker.id)
        with suppress(ProcessLookupError):
            worker.process.terminate()

    async def stop(self) -> None:
        """End all workers: at once those with no job in hand, the others once it is delivered, or after ``GRACE``."""
        self._stopped = True
        for worker in self.running:
            self.terminate(worker)
            if not self._queue.held_by(worker.id):
                _kill(worker)
        if self._watchers:
            await asyncio.wait(self._watchers, timeout=GRACE)
        await self.kill()

    async def kill(self) -> None:
        """End all workers now."""
        self._stopped = True
        for worker in self.running:
            _kill(worker)
        if self._watchers:
            await asyncio.wait(self._watchers)

    def states(self) -> dict[str, int]:
        """Count the workers by the platform's names for their states."""
        ready = [worker for worker in self.running if worker.ready]
        busy = sum(bool(self._queue.held_by(worker.id)) for worker in ready)
        return {
            "idle": len(ready) - busy,
            "initializing": len(self.running) - len(ready),
            "ready": len(ready),
            "running": busy,
            "throttled": 0,
            "unhealthy": self.unhealthy,
        }


def protocol(url: str, worker_id: str) -> dict[str, str]:
    """Return the variables with which the platform starts a worker; the SDK fills in the ``$`` names."""
    return {
        "RUNPOD_ENDPOINT_ID": "local",
        "RUNPOD_POD_ID": worker_id,
        "RUNPOD_AI_API_KEY": "local",
        "RUNPOD_WEBHOOK_GET_JOB": f"{url}/job-take/$ID?gpu=none",
        "RUNPOD_WEBHOOK_POST_OUTPUT": f"{url}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
        "RUNPOD_WEBHOOK_POST_STREAM": f"{url}/job-stream/$RUNPOD_POD_ID/$ID?gpu=none",
        "RUNPOD_WEBHOOK_PING": f"{url}/ping/$RUNPOD_POD_ID",
        "RUNPOD_PING_INTERVAL": "10000",
        "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
        "RUNPOD_SKIP_GPU_CHECK": "true",
        "RUNPOD_LOG_LEVEL": os.environ.get("RUNPOD_LOG_LEVEL", "INFO"),
        "PYTHONUNBUFFERED": "1",
    }


def _end_with_the_endpoint() -> None:
    """Have SIGTERM sent to this process when its parent dies: the SDK asks a dead endpoint again without a pause."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _kill(worker: Worker) -> None:
    with suppress(ProcessLookupError):
        os.killpg(worker.process.pid, signal.SIGKILL)
