"""64 pictures of 500 kB into a bucket 20 ms away: one by one with the SDK's own upload, and by this worker.

``python benchmarks/pictures.py``; the store is moto's.
"""

import os
import statistics
import subprocess
import sys
import time

import httpx2

import one_job
from serve import Serve, submit

PICTURES, ROUNDS = 64, 3
STORE = """
import sys, time
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

store = DomainDispatcherApplication(create_backend_app)

def away(environ, start_response):
    time.sleep(0.02)
    return store(environ, start_response)

server = make_server("127.0.0.1", 0, away, threaded=True)
print(server.port, flush=True)
server.serve_forever()
"""


def main() -> None:
    """Print the seconds of either side, and the ratio."""
    with subprocess.Popen(
        [sys.executable, "-c", STORE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as store:
        try:
            measure(Serve(), f"http://127.0.0.1:{next(iter(store.stdout or ())).strip()}")
        finally:
            store.terminate()


def measure(serve: Serve, address: str) -> None:
    """Run both sides in turns."""
    access = {
        "BUCKET_ENDPOINT_URL": address,
        "BUCKET_ACCESS_KEY_ID": "id",
        "BUCKET_SECRET_ACCESS_KEY": "secret",
        "BUCKET_NAME": "pictures",
    }
    for bucket in (access["BUCKET_NAME"], time.strftime("%m-%y")):  # the SDK's upload has the month's
        httpx2.put(f"{address}/{bucket}").raise_for_status()
    os.environ.update(access)  # which the documented handler's worker inherits
    with serve.documented("pictures") as theirs, serve.ours("pictures", env=access) as ours:
        job = {"input": {"items": [str(number) for number in range(PICTURES)]}}
        for endpoint in (theirs, ours):  # the first job of a process pays for what it imports
            submit(endpoint, "runsync", {"input": {"items": ["warm", "up"]}})
        ratios = []
        for _ in range(ROUNDS):
            documented, here = one_job.timed(theirs, job)[0], one_job.timed(ours, job)[0]
            ratios.append(documented / here)
            print(f"documented {documented:.3f} s, this worker {here:.3f} s: {ratios[-1]:.1f} times", flush=True)
    print(f"{statistics.median(ratios):.1f} times ({min(ratios):.1f} to {max(ratios):.1f})")


if __name__ == "__main__":
    main()
