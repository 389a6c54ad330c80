"""Clients of an endpoint, in a process of their own: each sends its next job when it has the answer to the last.

As a program: the arguments of ``call`` as JSON on standard input, what it returns on standard output.
"""

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from aiohttp import ClientSession, ClientTimeout, TCPConnector


@dataclass(frozen=True)
class Answered:
    """What came of ``jobs`` that were answered in so many ``seconds``, by as many ``calls`` of the task."""

    jobs: int
    seconds: float
    calls: int

    @property
    def rate(self) -> float:
        """Jobs a second."""
        return self.jobs / self.seconds


async def call(url: str, clients: int, jobs: int, job: dict[str, Any]) -> Answered:
    """Send ``job`` so many times to ``/runsync`` of the endpoint at ``url``, after once that does not count.

    Each result of a call says when the call ``began``, which tells calls apart.
    """
    body = json.dumps({"input": job})
    headers = {"Authorization": "Bearer benchmark"}
    began: set[float] = set()
    async with ClientSession(
        connector=TCPConnector(limit=0), headers=headers, timeout=ClientTimeout(total=600)
    ) as session:

        async def send() -> None:
            async with session.post(f"{url}/runsync?wait=300000", data=body) as answer:
                state = json.loads(await answer.read())
            if state.get("status") != "COMPLETED":
                raise SystemExit(f"A job was answered {state}")
            began.update(result.get("result", result)["began"] for result in state["output"])

        async def client() -> None:
            for _ in left:
                await send()

        await send()
        began.clear()
        left = iter(range(jobs))
        start = time.monotonic()
        await asyncio.gather(*(client() for _ in range(clients)))
        return Answered(jobs, time.monotonic() - start, len(began))


def answered(url: str, clients: int, jobs: int, job: dict[str, Any]) -> Answered:
    """Return what ``call`` does, in another process."""
    given = json.dumps({"url": url, "clients": clients, "jobs": jobs, "job": job})
    return Answered(**json.loads(subprocess.check_output([sys.executable, __file__], input=given, text=True)))


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(call(**json.load(sys.stdin))))))
