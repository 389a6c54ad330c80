"""An async task with a client that belongs to its event loop, made by an async ``load``."""

import asyncio
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel

_gate: "asyncio.Future[str]"


class Input(BaseModel):
    items: list[Any]


async def load() -> None:
    global _gate
    _gate = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.01, _gate.set_result, "loaded")


async def unload() -> None:
    if _gate.get_loop() is asyncio.get_running_loop():
        await asyncio.to_thread(Path(os.environ["STATE"]).write_text, await _gate)


async def process(item: Any, job: Input) -> Any:
    return await asyncio.shield(_gate)
