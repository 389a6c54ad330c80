"""The worker beside two servers for models, on the same work: 32 clients, an item a request, 50 ms a call.

``make peers`` runs it, and writes the table in docs/scaling.md. The others answer their callers themselves; a request
to this worker goes through the local endpoint, to the worker and back, as it does on the platform.
"""

import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import httpx2
import stamina

import readme
from chart import spread
from clients import answered
from serve import Serve, machine

HERE = Path(__file__).parent
SCALING = HERE.parent / "docs" / "scaling.md"
CLIENTS, CALL = 32, 0.05
JOBS, ROUNDS = 1_600, 3
PORT = 8_790
JOB = {"text": "x"}


@contextmanager
def peer(python: str, name: str) -> Iterator[str]:
    """Serve the call with the server of this name; yield its address."""
    line = [python, str(HERE / "peers" / f"{name}_server.py"), "--port", str(PORT)]
    env = {**os.environ, "SECONDS_A_CALL": str(CALL)}
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
    rates: dict[str, list[float]] = {"this worker": [], "mosec": [], "litserve": []}
    for _ in range(ROUNDS):
        with Serve().ours("batch") as endpoint:
            job = {"items": ["x"], "seconds": CALL}
            rates["this worker"].append(answered(endpoint.url, CLIENTS, JOBS, job).rate)
        for name in ("mosec", "litserve"):
            with peer(python, name) as url:
                rates[name].append(answered(url, CLIENTS, JOBS, JOB, direct=True).rate)
        print({name: round(found[-1]) for name, found in rates.items()}, file=sys.stderr)
    most = CLIENTS / CALL
    rows = ["| server | requests a second | of the most that the call allows |", "|---|---|---|"]
    for name, found in rates.items():
        words = name if name == "this worker" else f"{name} {installed(python, name)}"
        rows.append(f"| {words} | {spread(found)} | {statistics.median(found) / most:.0%} |")
    rows.append(
        f"\nMedians and ranges of {ROUNDS} rounds in turns. Measured on {machine()}, uvicorn {version('uvicorn')}."
    )
    text = "\n".join(rows) + "\n"
    print(text)
    readme.write("peers", text, SCALING)


if __name__ == "__main__":
    main()
