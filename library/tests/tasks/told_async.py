"""An async task whose items are what to do, in Python."""

import asyncio
import os
import threading
from typing import Any

from tests.tasks.told import Input as Input

LOOP: Any = None


async def load() -> None:
    global LOOP
    LOOP = asyncio.get_running_loop()


async def unload() -> None:
    exec(os.environ.get("UNLOAD", ""), {"same_loop": LOOP is asyncio.get_running_loop()})


async def process(item: str, job: object, context: Any) -> Any:
    told = {**globals(), "context": context, "threading": threading}
    exec(item, told)
    made = told["main"]()
    return await made if asyncio.iscoroutine(made) else made
