"""``aggregating-worker demo``: send one job to a worker in its production loop, and show what a caller gets."""

import argparse
import asyncio
import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

import httpx2

from aggregating_worker.client import Client, Envelope
from aggregating_worker.client.envelopes import aggregate, flatten, is_envelope, is_parts
from aggregating_worker.client.job import streamed
from aggregating_worker.local.job import FINAL
from aggregating_worker.local.launch import NO_HANDLER
from aggregating_worker.local.server import LocalEndpoint
from aggregating_worker.local.worker_api import MAX_CHUNK
from aggregating_worker.sentence import counted, one_line, printable, reason

PATIENCE = 900.0
"""Seconds to wait for a job's end; before the first job, the worker may load a model for most of them."""
HELD = 5_000
"""Milliseconds for which the endpoint may hold an answer; after each, the demo checks that the worker is alive."""
TEXT = 100
"""Characters of a text that is shown whole."""
ROWS = 20
"""Elements of a list that are shown."""
LOG = 20
"""Lines of the log that are shown when the worker has ended."""


class Failed(Exception):
    """What is wrong with the worker, as a sentence."""


class Demo:
    """A caller of ``endpoint``, whose workers write to ``log``."""

    def __init__(self, endpoint: LocalEndpoint, http: httpx2.Client, log: Path) -> None:
        self._endpoint = endpoint
        self._http = http
        self._log = log

    def run(self, job: Any, folder: Path) -> str:
        """Send ``job``, show its results, and save its files into ``folder``; return a sentence. Raises ``Failed``."""
        began = time.monotonic()
        submitted = self._call("POST", "/run", job)
        print(f"POST /run       {submitted}")
        streaming = self._follow(submitted["id"], began)
        state = self._ended("/status", self._call("GET", f"/status/{submitted['id']}"))
        listed = any(map(is_envelope, flatten([state.get("output")])))
        print(
            f"GET  /status    COMPLETED, the {'aggregate' if listed else 'answer'}:\n{shown(state['output'], indent=2)}"
        )
        state_again = self._ended("/runsync", self._call("POST", f"/runsync?wait={HELD}", job))
        if not listed:
            print(f"POST /runsync   COMPLETED\n{shown(state_again['output'], indent=2)}")
            return "The request is in an older form, which task.single knows, and so is the answer."
        envelopes, again = _envelopes("/status", state), _envelopes("/runsync", state_again)
        print(f"POST /runsync   COMPLETED, {counted(len(again), 'result')}")
        _compare(streaming, envelopes, again)
        saved = asyncio.run(_saved(envelopes, self._endpoint.base_url, folder))
        check_items("/run", saved)
        check_items("/runsync", again)
        sentence = "The stream and the aggregate are the same list, and /runsync has an envelope for each item, too."
        files = len([*folder.glob("*")])
        return f"{sentence}\nFiles of the results: {files}, in {folder}" if files else sentence

    def _follow(self, job_id: str, began: float) -> list[Any]:
        """Print the stream as it comes; return its envelopes, without the parts of items."""
        results: list[Any] = []
        while True:
            state = self._call("GET", f"/stream/{job_id}?wait={HELD}")
            if not (state["stream"] or state["status"] in FINAL):
                print(f"GET  /stream    {time.monotonic() - began:5.2f} s  nothing yet, {state['status']}")
            for each in streamed(state):
                print(f"GET  /stream    {time.monotonic() - began:5.2f} s  {shown(each)}")
                if not is_parts(each):
                    results.append(each)
            if state["status"] in FINAL and not state["stream"]:
                return results
            self._check(began)

    def _ended(self, path: str, state: dict[str, Any]) -> dict[str, Any]:
        """Wait for the job that is in ``state`` now, and return the state in which it is done."""
        began = time.monotonic()
        while state["status"] not in FINAL:
            self._check(began)
            state = self._call("GET", f"/status-sync/{state['id']}?wait={HELD}")
        if state["status"] != "COMPLETED":
            raise Failed(f"{path}: the job is {state['status']}, not COMPLETED. The worker's log: {self._log}")
        return state

    def _check(self, began: float) -> None:
        """Raise ``Failed`` if the worker has ended, or too much time has passed."""
        if not self._endpoint.workers.alive:
            lines = self._log.read_text(errors="replace").splitlines()
            print("The end of the worker's log:", *lines[-LOG:], sep="\n")
            raise Failed("The worker ended before it took the job: its log above says why.")
        if time.monotonic() - began > PATIENCE:
            raise Failed(f"The job has not ended within {PATIENCE:.0f} s. The worker's log: {self._log}")

    def _call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self._http.request(method, path, json=body).json()
        except (httpx2.HTTPError, ValueError) as error:
            raise Failed(f"{path} got no answer: {error}") from None
        if "error" in answer:
            raise Failed(f"{path} failed: {short(answer['error'])}. The worker's log: {self._log}")
        return answer


def _envelopes(path: str, state: dict[str, Any]) -> list[Envelope]:
    """Return one envelope for each item."""
    try:
        return aggregate(state.get("output"), None, None)
    except ValueError as error:
        raise Failed(f"{path}: the job is done, but {error}.") from None


def _compare(streamed: list[Any], envelopes: list[Envelope], again: list[Envelope]) -> None:
    """Raise ``Failed`` unless a job's stream had its ``envelopes``, and the second job has them for the same items.

    An envelope over the limit of a chunk is not on the stream. The two jobs may give an item different results.
    """
    seen = [each.get("index") if isinstance(each, dict) else None for each in streamed]
    if streamed != [each for each in envelopes if each["index"] in seen or len(json.dumps(each)) < MAX_CHUNK]:
        raise Failed("The stream and the aggregate of the same job differ.")
    if [each["index"] for each in again] != [each["index"] for each in envelopes]:
        raise Failed("/run and /runsync do not have envelopes for the same items.")


def check_items(path: str, envelopes: list[Envelope]) -> None:
    """Raise ``Failed`` if an item failed; it says how many, and why the first one did."""
    if failed := [each for each in envelopes if not each["success"]]:
        index, why = failed[0]["index"], failed[0]["failure"]
        words = f"{path}: {len(failed)} of {counted(len(envelopes), 'item')} failed. Item {index}"
        raise Failed(f"{words}: {reason(one_line(why['type']), one_line(why['message']))}")


async def _saved(envelopes: list[Envelope], base_url: str, folder: Path) -> list[Envelope]:
    """Return ``envelopes`` with the results that are in a bucket, and with their files saved in ``folder``."""
    async with Client("local", api_key="local", base_url=base_url) as client:
        return [each async for each in client.fetched(envelopes, lambda each: client.save_files(each, folder))]


def shown(value: Any, indent: int | None = None) -> str:
    """Return ``value`` as JSON for a person; characters that the terminal cannot show are escaped."""
    text = printable(json.dumps(short(value), ensure_ascii=False, indent=indent))
    return text.encode(sys.stdout.encoding, "backslashreplace").decode(sys.stdout.encoding)


def short(value: Any) -> Any:
    """Return ``value`` as it is shown: of a long text or list, the beginning and the size."""
    match value:
        case str() if len(value) > TEXT:
            return f"{value[: TEXT // 2]}... ({len(value):,} characters)"
        case list() if len(value) > ROWS:
            return [*map(short, value[: ROWS // 2]), f"... ({len(value):,} in all)"]
        case list():
            return [*map(short, value)]
        case dict():
            return {key: short(inner) for key, inner in value.items()}
    return value


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Failed(f"There is no {file.name} in this folder: write a job into it, as the README shows.") from None
    except ValueError as error:
        raise Failed(f"{file.name} is not JSON: {error}") from None


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main(argv: list[str]) -> None:
    """Send ``test_input.json`` with /run, follow its stream, compare it with /status; then with /runsync."""
    what = "Send the job in test_input.json to a worker of this folder's handler.py, in its production loop."
    argparse.ArgumentParser(prog="aggregating-worker demo", description=what).parse_args(argv[1:])
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _interrupt)
    if not Path("handler.py").is_file():
        sys.exit(f"{NO_HANDLER}.")
    try:
        job = _read(Path("test_input.json"))
        folder = Path(tempfile.mkdtemp(prefix="demo-"))
        log = folder / "worker.log"
        print(f"Starting a local endpoint with one worker (its log: {log})", flush=True)
        with (
            log.open("wb") as output,
            LocalEndpoint(log=output) as endpoint,
            httpx2.Client(base_url=endpoint.url, headers={"Authorization": "Bearer local"}, timeout=60) as http,
        ):
            try:
                sentence = Demo(endpoint, http, log).run(job, folder / "files")
            finally:
                endpoint.kill()  # nothing here is worth waiting for
        if not (folder / "files").exists():
            shutil.rmtree(folder)
    except KeyboardInterrupt:
        sys.exit("Stopped, and the worker with it.")
    except (Failed, OSError) as error:
        sys.exit(str(error))
    print(sentence)
