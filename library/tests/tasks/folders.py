"""A task that writes into the folders of its items what they name, in several threads at once."""

import os
import threading
import time
from typing import Any

from aggregating_worker.context import Context
from tests.tasks.hostile import Input, load

__all__ = ["Input", "load", "process"]

ITEM_CONCURRENCY = 4


def write(item: Any, context: Context) -> Any:
    """Write one fixed name in four threads, each a line; then do what the item names."""
    lock = threading.Lock()

    def note() -> None:
        with lock, (context.folder / "paint.log").open("a") as log:
            log.write(f"{context.index} ")

    threads = [threading.Thread(target=note) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    match item:
        case "raise":
            raise ValueError(f"{context.job_id} {context.index}")  # alike over several jobs, they would end the process
        case "die":
            os._exit(7)
        case "rest":
            time.sleep(1_000)
        case {"picture": name}:
            (context.folder / name).write_bytes(b"\x89PNG\r\n\x1a\n")
            return context.folder / name
    return {"log": context.folder / "paint.log", "folder": str(context.folder)}


def process(item: Any, job: Input, context: Context) -> Any:
    return write(item, context)
