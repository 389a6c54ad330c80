"""``aggregating-worker serve``: a local endpoint for this project's worker, or for any other."""

import argparse
import errno
import os
import signal
import sys
import time
from pathlib import Path

from aggregating_worker.local.launch import NO_HANDLER, Image
from aggregating_worker.local.server import LocalEndpoint
from aggregating_worker.local.workers import GRACE


def main(argv: list[str]) -> None:
    """Serve until interrupted; exit 1 with a sentence if the endpoint cannot start, or its workers' command is none."""
    parser = argparse.ArgumentParser(
        prog="aggregating-worker serve",
        usage="%(prog)s [--port PORT] [--workers COUNT] [--batch-workers COUNT] [--distance MS] [--reload] "
        "[-- COMMAND … | --image NAME [-- OPTION …]]",
        description="Serve Runpod's job API on this machine, with workers in their production loop.",
    )
    parser.add_argument("--port", type=_port, default=8000, help="port to serve on; 0 takes a free one (default: 8000)")
    parser.add_argument("--workers", type=_count, default=1, help="workers to keep alive, from 0 on (default: 1)")
    parser.add_argument(
        "--batch-workers", type=_count, default=1, help="workers to start with the first batch (default: 1)"
    )
    parser.add_argument("--reload", action="store_true", help="restart the workers when their code or data changes")
    parser.add_argument("--distance", type=_milliseconds, default=0, help="ms to add to each answer (default: 0)")
    parser.add_argument("--image", help="run this image's workers instead of processes of this machine")
    parser.add_argument(
        "rest",
        nargs="*",
        metavar="…",
        help="the worker's command (default: python handler.py); with --image, options for docker run",
    )
    arguments = parser.parse_args(argv[1:])
    if arguments.image and arguments.reload:
        parser.error("--reload does not go with --image: the code in an image does not change")
    if not (arguments.image or arguments.rest or Path("handler.py").is_file()):
        sys.exit(f"{NO_HANDLER}, or give a command after --.")

    api_key = os.environ.get("RUNPOD_API_KEY")
    if api_key and " " in api_key:
        sys.exit("RUNPOD_API_KEY has a space in it, which no request could show: mend it, or unset it.")
    for ending in (signal.SIGTERM, signal.SIGHUP):  # as an exception, so that no worker outlives the endpoint
        signal.signal(ending, lambda *_: sys.exit())
    endpoint = LocalEndpoint(
        Image(arguments.image, arguments.rest) if arguments.image else arguments.rest,
        workers=arguments.workers,
        batch_workers=arguments.batch_workers,
        port=arguments.port,
        api_key=api_key,
        distance=arguments.distance / 1000,
        reload=arguments.reload,
    )
    try:
        with endpoint:
            print(
                f"Endpoint   {endpoint.url}\n"
                f"Page       {endpoint.page_url}\n"
                f'Call it    curl -H "Authorization: Bearer {"$RUNPOD_API_KEY" if api_key else "local"}" '
                f"{endpoint.url}/runsync -d @test_input.json\n"
                f"SDK        RUNPOD_ENDPOINT_BASE_URL={endpoint.base_url}, endpoint id: local\n"
                "Stop       Ctrl-C",
                flush=True,
            )
            try:
                while True:
                    time.sleep(60)
            except KeyboardInterrupt:
                print(f"Stopping: running jobs have {GRACE:.0f} s to end.", flush=True)
                raise
    except KeyboardInterrupt:
        return
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            sys.exit(f"Port {arguments.port} is in use: choose another --port.")
        why = ": ".join(filter(None, (error.strerror or str(error), error.filename)))
        sys.exit(f"The endpoint cannot start: {why}. Check the --port, and the command that runs a worker.")


def _port(text: str) -> int:
    return _within(text, 0, 65_535)


def _count(text: str) -> int:
    return _within(text, 0, 64)


def _milliseconds(text: str) -> int:
    return _within(text, 0, 10_000)


def _within(text: str, least: int, most: int) -> int:
    if not text.isdecimal() or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} to {most}")
    return int(text)
