"""A task that gives back what it is told of each item, and logs it."""

import logging
from typing import Any

from aggregating_worker.context import Context
from tests.tasks.hostile import Input, load

__all__ = ["Input", "load", "process"]

ITEM_CONCURRENCY = 2
log = logging.getLogger(__name__)


def process(item: Any, job: Input, context: Context) -> Any:
    log.info("seen %s", item)
    log.debug("not seen")
    return {"job_id": context.job_id, "index": context.index, "keys": sorted(context.job)}
