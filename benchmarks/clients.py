"""Clients of an endpoint, in a process of their own: each sends its next job when it has the answer to the last.

As a program: the arguments of ``call`` as JSON on standard input, what it returns on standard output.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit


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


async def call(url: str, clients: int, jobs: int, job: dict[str, Any], *, direct: bool = False) -> Answered:
    """Send ``job`` so many times to ``/runsync`` of the endpoint at ``url``, after once that does not count.

    With ``direct``, it goes to ``url`` as it is, and one result comes back as it is: so other servers are called. Each
    result of a call says when the call ``began``, which tells calls apart. The clients have no HTTP library: one
    would take from the machine, which they share with what is measured, as much as a worker does.
    """
    address, body = urlsplit(url), json.dumps(job if direct else {"input": job})
    path = address.path if direct else f"{address.path}/runsync?wait=300000"
    request = (
        f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Authorization: Bearer benchmark\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
    began: set[float] = set()

    async def client(turns: Iterable[int]) -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        for _ in turns:
            async with asyncio.timeout(600):
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                answer = json.loads(await reader.readexactly(length))
            state = {"status": "COMPLETED", "output": [answer]} if direct else answer
            if state.get("status") != "COMPLETED":
                raise SystemExit(f"A job was answered {state}")
            began.update(result.get("result", result)["began"] for result in state["output"])
        writer.close()

    await client(range(1))
    began.clear()
    left = iter(range(jobs))
    start = time.monotonic()
    await asyncio.gather(*(client(left) for _ in range(clients)))
    return Answered(jobs, time.monotonic() - start, len(began))


def answered(url: str, clients: int, jobs: int, job: dict[str, Any], *, direct: bool = False) -> Answered:
    """Return what ``call`` does, in another process."""
    given = json.dumps({"url": url, "clients": clients, "jobs": jobs, "job": job, "direct": direct})
    return Answered(**json.loads(subprocess.check_output([sys.executable, __file__], input=given, text=True)))


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(call(**json.load(sys.stdin))))))
