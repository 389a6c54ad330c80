"""The worker beside two servers for models, on the same work: an item a request, calls that take as long for many.

``make peers`` runs it, and writes the table in docs/scaling.md. The others answer their callers themselves; a request
to this worker goes through the local endpoint, to the worker and back, as it does on the platform.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import httpx2
import stamina
from rich.console import Console
from rich.progress import track

import readme
from chart import times
from clients import answered
from serve import Serve, machine

HERE = Path(__file__).parent
SCALING = HERE.parent / "docs" / "scaling.md"
PEERS = ("mosec", "litserve")
ROUNDS = 3
PORT = 8_790
JOB = {"text": "x"}


@dataclass(frozen=True)
class Load:
    """Requests of an item each, from a number of ``clients``; ``seconds`` are a call's."""

    words: str
    clients: int
    requests: int
    seconds: float = 0


LOADS = (
    Load("32 clients, 50 ms a call", 32, 1_600, 0.05),
    Load("32 clients, instant", 32, 3_200),
    Load("one after another, instant", 1, 400),
)


@contextmanager
def peer(python: str, name: str, load: Load) -> Iterator[str]:
    """Serve the load's call with the server of this name; yield its address."""
    line = [python, str(HERE / "peers" / f"{name}_server.py"), "--port", str(PORT)]
    env = {**os.environ, "SECONDS_A_CALL": str(load.seconds)}
    quiet = subprocess.DEVNULL
    with subprocess.Popen(line, env=env, stdout=quiet, stderr=quiet, start_new_session=True) as process:
        url = f"http://127.0.0.1:{PORT}/inference"
        try:
            for attempt in stamina.retry_context(on=httpx2.HTTPError, attempts=None, timeout=60):
                with attempt:
                    httpx2.post(url, json=JOB, timeout=10).raise_for_status()
            yield url
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # and the processes that it has started


def installed(python: str, package: str) -> str:
    """Return the version of a package in another environment."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.check_output([python, "-c", code], text=True).strip()


def main() -> None:
    """Measure all three in turns, and write the table. The argument is the Python that has the two others."""
    python = sys.argv[1]
    servers = ["this worker", *(f"{name} {installed(python, name)}" for name in PEERS)]
    rows = [f"| requests a second | {' | '.join(servers)} |", "|---|---|---|---|"]
    for load in track(LOADS, "servers side by side", console=Console(stderr=True)):
        rates: list[list[float]] = [[] for _ in servers]
        for _ in range(ROUNDS):
            with Serve().ours("batch") as endpoint:
                job = {"items": ["x"], "seconds": load.seconds}
                rates[0].append(answered(endpoint.url, load.clients, load.requests, job).rate)
            for name, found in zip(PEERS, rates[1:], strict=True):
                with peer(python, name, load) as url:
                    found.append(answered(url, load.clients, load.requests, JOB, direct=True).rate)
        most = f", at most {load.clients / load.seconds:.0f}" if load.seconds else ""
        rows.append(f"| {load.words}{most} | {' | '.join(map(times, rates))} |")
    text = "\n".join(
        [
            *rows,
            "",
            f"Medians and ranges of {ROUNDS} rounds in turns. Up to 32 items in a call, for which the peers wait 5 ms. "
            f"Measured on {machine()}, uvicorn {version('uvicorn')}.",
            "",
        ]
    )
    print(text)
    readme.write("peers", text, page=SCALING)


if __name__ == "__main__":
    main()
