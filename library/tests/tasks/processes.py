"""A task that shows what its process is, and does to it what its items name."""

import asyncio
import errno
import logging
import multiprocessing
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from aggregating_worker import ItemFailed

SERVER = """
import socket, time
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
time.sleep(1_000)
"""

_local = threading.local()
_lost_gpu = False
STATE = Path(os.environ["STATE"]) if "STATE" in os.environ else None
"""A folder in which what happens is noted."""


class Item(BaseModel):
    model_config = ConfigDict(extra="forbid")

    do: str
    value: Any = None
    _lock: Any = PrivateAttr(default=None)

    def model_post_init(self, _: Any) -> None:
        if self.do == "stay":
            self._lock = threading.Lock()


class Input(BaseModel):
    model_config = ConfigDict(extra="forbid")

    items: list[Item]
    lock: bool = False
    notes: Any = Field(None, exclude=True)

    def model_post_init(self, _: Any) -> None:
        if self.lock:
            self.notes = threading.Lock()


def note(what: str) -> None:
    if STATE:
        with (STATE / "notes").open("a") as file:
            file.write(f"{what} {os.getpid()}\n")


def load() -> None:
    note("load")
    _local.database = sqlite3.connect(":memory:")
    _local.thread = threading.get_ident()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def unload() -> None:
    note("unload")


def server() -> int:
    """Start a child that listens at a port, and return that."""
    child = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    return int(child.stdout.readline())


def fork() -> int:
    """Leave a child behind that never ends."""
    if not (child := os.fork()):
        time.sleep(1_000)
        os._exit(0)
    return child


def write_into_sockets() -> None:
    """Say to the worker that there is a line for the log, and not which."""
    for descriptor in range(3, 64):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                os.write(descriptor, bytes.fromhex("f900000001000000025b5d"))


def log(value: Any) -> Any:
    logging.getLogger("task").warning("said in a fork")
    return value


def act(item: Item) -> Any:
    global _lost_gpu
    note(item.do)
    match item.do:
        case "pid":
            return os.getpid()
        case "where":
            database = getattr(_local, "database", None)
            return {
                "main": threading.current_thread() is threading.main_thread(),
                "database": database.execute("select 1").fetchone() if database else None,
            }
        case "device":
            return {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
        case "server":
            return server()
        case "fork":
            return fork()
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(1_000)
        case "die once" if not Path(item.value).exists():
            Path(item.value).touch()
            os._exit(1)
        case "lose the GPU":
            _lost_gpu = True
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        case "use the GPU":
            time.sleep(0.1)
            if _lost_gpu:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
        case "lose the GPU once" if not Path(item.value).exists():
            Path(item.value).touch()
            raise RuntimeError("CUDA error: unspecified launch failure")
        case "restart":
            raise ItemFailed("broken", type="Broken", details={"code": 7}, restart=True)
        case "full disk":
            raise OSError(errno.ENOSPC, "No space left on device")
        case "wait":
            while not Path(item.value).exists():
                time.sleep(0.01)
        case "signal":
            signal.raise_signal(item.value)
        case "garbage":
            write_into_sockets()
            time.sleep(1_000)
        case "log in a fork":
            pool = multiprocessing.get_context("fork").Pool(1)
            try:
                return pool.apply(log, (item.value,))
            finally:  # one that is only forgotten may hang (docs.python.org, multiprocessing.pool)
                pool.close()
                pool.join()
        case "picture":
            return Image.effect_noise((item.value, item.value), 90)
        case "sleep":
            time.sleep(item.value)
        case "print":
            for _ in range(item.value):
                print("a line", "of", "four parts")
        case "log":
            logging.getLogger("task").warning("said %s", item.value)
    return item.value


def process(item: Item, job: Input) -> Any:
    return act(item)


async def awaiting(item: Item, job: Input) -> Any:
    await asyncio.sleep(0)
    return act(item)
