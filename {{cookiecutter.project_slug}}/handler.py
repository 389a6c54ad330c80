"""Entry point: in production the SDK streams what a generator function yields; in a local test it does not."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from aggregating_worker import Worker

worker = Worker()  # around task.py


async def handler(job: dict[str, Any]) -> AsyncGenerator[Any, None]:
    """Yield each result as it is ready, in input order: in production, the SDK streams them and collects them."""
    async with aclosing(worker.run(job)) as results:
        async for result in results:
            yield result


async def local_test(job: dict[str, Any]) -> Any:
    """Return the results as one list: a local test calls its handler once, and iterates over nothing."""
    return await worker.collect(handler(job))


if __name__ == "__main__":
    with worker.guard():  # sentences, exit statuses, Ctrl-C, and a job loop that never rests while work waits
        import runpod  # here, where the slow part of its import is left out

        # Chosen before the SDK looks at it: it streams only what *is* a generator function. It would never answer the
        # job of a plain wrapper that returns a generator.
        runpod.serverless.start(
            {
                "handler": handler if worker.streams else local_test,
                "return_aggregate_stream": True,
                "concurrency_modifier": worker.job_concurrency,
            }
        )
