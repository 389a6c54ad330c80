"""Entry point of the worker: local test or production.

Yours is ``task.py``; this file puts it and the machinery in ``worker/`` together.
"""

import worker.before_sdk  # noqa: F401  # isort: skip  # before the SDK

import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import cache
from typing import Any

import runpod

import task
from worker import log
from worker.job import Chunk, Worker
from worker.mode import Mode, find_mode
from worker.refusal import Refused
from worker.result import describe
from worker.settings import read_settings


@cache
def machinery() -> Worker:
    """Return the task under its settings, made once. Raises ``Refused`` if either cannot be used."""
    return Worker(task, read_settings())


async def handler(job: dict[str, Any]) -> AsyncGenerator[Chunk, None]:
    """Yield each result of ``job`` as it is ready, in input order. The SDK streams and collects them."""
    async with aclosing(machinery().run(job)) as chunks:
        async for chunk in chunks:
            yield chunk


async def aggregate(job: dict[str, Any]) -> list[Chunk] | Chunk:
    """Return what ``handler`` yields as the list that production would collect, or its ``{"error": …}``."""
    chunks = [chunk async for chunk in handler(job)]
    refused = len(chunks) == 1 and isinstance(chunks[0], dict) and "error" in chunks[0]
    return chunks[0] if refused else chunks


def load(mode: Mode) -> None:
    """Run the task's ``load`` before the first job. In production a worker that cannot load dies, and takes no job.

    Here and not within a fitness check, where the SDK's event loop runs and ``asyncio.run`` would fail; a fitness check
    is how the failure reaches the platform. Raises ``Refused`` in the other modes.
    """
    try:
        task.load()
        return
    except BaseException as error:
        raised = describe(error)
    log.error("load() failed", raised)
    refusal = Refused(f"load() in task.py failed: {raised.kind}: {raised.message}")
    if mode is not Mode.PRODUCTION:
        raise refusal

    def load() -> None:
        raise refusal

    runpod.serverless.register_fitness_check(load)


def main() -> None:
    """Start the worker in the mode that the SDK is about to choose.

    The handler has to be chosen here, before the SDK looks at it. The SDK streams only what *is* a generator function
    (1.12.0, ``rp_handler.is_generator``): a plain function that returns a generator is never iterated, and its job
    never answered. Its local test iterates over nothing: there it gets a coroutine function that returns the list.
    """
    try:
        mode = find_mode()
        job_concurrency = machinery().settings.job_concurrency
        load(mode)
    except Refused as refusal:
        sys.exit(str(refusal))
    runpod.serverless.start(
        {
            "handler": handler if mode.iterates else aggregate,
            "return_aggregate_stream": True,
            "concurrency_modifier": lambda _: job_concurrency,
        }
    )


if __name__ == "__main__":
    main()
