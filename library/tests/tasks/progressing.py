"""A task that says how far it is, in the way that its item names, and then waits to be told to go on."""

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from aggregating_worker.context import Context


class Input(BaseModel):
    items: list[Any]


def load() -> None:
    pass


def by_the_sdk(job_id: str, value: Any) -> None:
    from runpod.serverless import progress_update  # a task may import it when it needs it

    progress_update({"id": job_id}, value)
    for nothing in ({}, None, {"id": 3}):  # as the SDK's own, which fails in a thread that nobody waits for
        progress_update(nothing, value)


def in_a_thread(function: Any, *arguments: Any) -> None:
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    thread.join()


def in_a_fork(context: Context) -> int:
    if not (child := os.fork()):
        context.progress("from a fork")
        os._exit(0)
    return os.waitpid(child, 0)[1]


def act(item: Any, context: Context) -> Any:
    match item:
        case {"say": values}:
            for value in values:
                context.progress(value)
        case {"in a thread": value}:
            in_a_thread(context.progress, value)
        case {"by the SDK": value}:
            by_the_sdk(context.job_id, value)
        case {"by the SDK in a thread": value}:
            in_a_thread(by_the_sdk, context.job_id, value)
        case "in a fork":
            return in_a_fork(context)
        case "unsendable":
            context.progress(object())
            context.progress(b"a file")
    return item


def wait(item: Any) -> None:
    if isinstance(item, dict) and "read" in item:
        Path(item["read"]).read_text()


def process(item: Any, job: Input, context: Context) -> Any:
    made = act(item, context)
    wait(item)
    return made


async def awaiting(item: Any, job: Input, context: Context) -> Any:
    made = act(item, context)
    await asyncio.to_thread(wait, item)
    return made


def in_batches(items: list[Any], job: Input, contexts: list[Context]) -> list[Any]:
    made = [act(item, context) for item, context in zip(items, contexts, strict=True)]
    for item in items:
        wait(item)
    return made
