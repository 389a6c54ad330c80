"""Entry point of the worker: local test or production.

Yours is ``task.py``; this file puts it and the machinery in ``worker/`` together.
"""

from worker.intake import before_sdk  # isort: skip  # before the SDK

if __name__ == "__main__":
    before_sdk.end_on_interrupt()

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import cache
from itertools import count
from typing import Any

import runpod

from worker import log
from worker.intake import loop
from worker.intake.mode import Mode, find_mode
from worker.job import Worker, Yielded
from worker.outcome.result import describe
from worker.refusal import Refused
from worker.settings import read_settings

EVERY = 5.0
"""Seconds after which a local test says that it goes on: an item may never return."""


@cache
def machinery() -> Worker:
    """Return the task, loaded, under its settings; made once. Raises ``Refused`` if it cannot be used."""
    log.TaskLog().install()
    try:
        import task
    except Exception as error:
        raised = describe(error)
        log.error("task.py cannot be imported", raised)
        raise Refused(f"task.py cannot be imported: {raised.kind}: {raised.message}") from None
    worker = Worker(task, read_settings(task))
    worker.load()
    return worker


async def handler(job: dict[str, Any]) -> AsyncGenerator[Yielded, None]:
    """Yield each result of ``job`` as it is ready, in input order. The SDK streams and collects them."""
    async with aclosing(machinery().run(job)) as chunks:
        async for chunk in chunks:
            yield chunk


async def aggregate(job: dict[str, Any]) -> list[Yielded] | Yielded:
    """Return what ``handler`` yields as the list that production would collect, or its ``{"error": …}``."""
    chunks = [chunk async for chunk in handler(job)]
    refused = len(chunks) == 1 and isinstance(chunks[0], dict) and "error" in chunks[0]
    return chunks[0] if refused else chunks


class LocalTest:
    """The handler of the SDK's local test, which ends with status 0 however its items fared (1.12.0, ``rp_local``)."""

    failure: str | None = None
    """What went wrong, in a sentence."""

    async def run(self, job: dict[str, Any]) -> list[Yielded] | Yielded:
        """Return the aggregate for the SDK to print."""
        before_sdk.end_on_interrupt()  # again: ``start`` has the SDK end with status 0
        telling = asyncio.create_task(_tell(job["id"]))
        output = await aggregate(job)
        telling.cancel()
        self.failure = _failed(output) if isinstance(output, list) else None
        return output


async def _tell(job_id: str) -> None:
    for seconds in count(EVERY, EVERY):
        await asyncio.sleep(EVERY)
        log.info(f"Not done after {seconds:g} s (ITEM_TIMEOUT bounds an item).", job_id)


def _failed(output: list[Any]) -> str | None:
    """Count the items that failed, if any did, and say why the first."""
    envelopes = [one for chunk in output for one in (chunk if isinstance(chunk, list) else [chunk])]
    failed = [envelope for envelope in envelopes if isinstance(envelope, dict) and not envelope["success"]]
    if not failed:
        return None
    index, why = failed[0]["index"], failed[0]["failure"]
    return f"{len(failed)} of {len(envelopes)} items failed. Item {index}: {why['type']}: {why['message']}"


def main() -> None:
    """Start the worker in the mode that the SDK is about to choose.

    The handler has to be chosen here, before the SDK looks at it. The SDK streams only what *is* a generator function
    (1.12.0, ``rp_handler.is_generator``): a plain function that returns a generator is never iterated, and its job
    never answered. Its local test iterates over nothing: there it gets a coroutine function that returns the list.
    """
    mode = None
    try:
        mode = find_mode()
        ready = machinery()
    except Refused as refusal:
        print(refusal, file=sys.stderr)
        if mode is Mode.PRODUCTION:
            die(refusal)
        sys.exit(1)
    if mode is Mode.PRODUCTION:
        loop.install(ready)
    if mode is Mode.API:
        from worker.intake import api  # and FastAPI with it, which no other mode needs

        api.install()
    test = LocalTest() if mode is Mode.LOCAL_TEST else None
    try:
        runpod.serverless.start(
            {
                "handler": handler if mode.iterates else test.run if test else aggregate,
                "return_aggregate_stream": True,
                "concurrency_modifier": lambda _: ready.settings.job_concurrency or 1,
            }
        )
    except SystemExit as end:
        if test and not end.code and test.failure:
            sys.exit(test.failure)
        raise
    if ready.failed:
        sys.exit(1)


def die(refusal: Refused) -> None:
    """Exit with status 1 by way of a fitness check, which tells the platform why, instead of taking jobs to fail."""

    def ready() -> None:
        raise refusal

    runpod.serverless.register_fitness_check(ready)
    runpod.serverless.start({"handler": handler})


if __name__ == "__main__":
    main()
