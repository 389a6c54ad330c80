"""The local endpoint under clients and workers that nobody here wrote: the SDKs of both languages, old and new."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import required

SDKS = ["1.7.12", "1.10.0", "1.12.0", "2.0.0rc2"]
"""The first two keep the jobs in hand in a file, in the folder that they are started in."""
HEADERS = {"Authorization": "any"}
HANDLER = """
import os, time, runpod


def handler(job):
    for item in job["input"]["items"]:
        if isinstance(item, str) and not os.path.exists(item):
            open(item, "w").close()
            os._exit(1)  # once
        elif isinstance(item, int | float):
            time.sleep(item)
        yield item


runpod.serverless.start({"handler": handler, "return_aggregate_stream": True})
"""
PYTHON_CLIENT = """
import asyncio, json
import aiohttp, runpod

runpod.api_key = "any"
endpoint = runpod.Endpoint("local")
said = {"sync": endpoint.run_sync({"input": {"items": [0, 1]}}, timeout=30)}
job = endpoint.run({"items": [0, 1]})
said["stream"] = list(job.stream())
said["output"] = job.output(timeout=30)
said["status"] = job.status()


async def main():
    async with aiohttp.ClientSession() as session:
        job = await runpod.AsyncioEndpoint("local", session).run({"items": [0, 1]})
        said["async stream"] = [chunk async for chunk in job.stream()]
        said["async output"] = await job.output(timeout=30)


asyncio.run(main())
said["cancel"] = endpoint.run({"items": [600]}).cancel()["status"]
said["health"] = sorted(endpoint.health())
said["purge"] = endpoint.purge_queue()
print(json.dumps(said))
"""
JAVASCRIPT_CLIENT = """
import runpodSdk from "runpod-sdk";

console.log = () => {}; // the client's own words
const endpoint = runpodSdk("any", { baseUrl: process.env.RUNPOD_ENDPOINT_BASE_URL }).endpoint("local");
const said = {};
said.sync = await endpoint.runSync({ input: { items: [0, 1] } });
said.longer = await endpoint.runSync({ input: { items: [3.5] } }, 3000); // than the wait: /status-sync
const { id } = await endpoint.run({ input: { items: [0, 1] } });
said.stream = [];
for (let last; last !== "COMPLETED"; last = (await endpoint.status(id)).status)
  for await (const chunk of endpoint.stream(id)) said.stream.push(chunk.output);
said.status = await endpoint.status(id);
said.statusSync = await endpoint.statusSync(id, 1000);
const cancelled = await endpoint.run({ input: { items: [600] } });
said.cancel = await endpoint.cancel(cancelled.id);
said.health = await endpoint.health();
said.purge = await endpoint.purgeQueue();
process.stdout.write(JSON.stringify(said));
"""


@pytest.fixture(scope="module")
def javascript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the JavaScript client; return the program that calls it."""
    folder = tmp_path_factory.mktemp("javascript")
    if not (shutil.which("node") and shutil.which("npm")):
        required("The JavaScript client is not tested: install Node.js and npm.")
    install("npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), "runpod-sdk")
    program = folder / "client.mjs"
    program.write_text(JAVASCRIPT_CLIENT)
    return program


@pytest.fixture(scope="module", params=SDKS)
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Install one of ``SDKS``; return its interpreter."""
    venv = tmp_path_factory.mktemp("sdk") / ".venv"
    uv = str(Path(sys.executable).with_name("uv"))
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(venv)], check=True)
    interpreter = str(venv / "bin" / "python")
    install(uv, "pip", "install", "--quiet", "--prerelease=allow", "--python", interpreter, f"runpod=={request.param}")
    return interpreter


def install(*command: str) -> None:
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if finished.returncode:
        required(f"{command[-1]} is not tested, for it cannot be installed: {finished.stderr[-500:]}")


@contextmanager
def serving(folder: Path, python: str, *options: str) -> Iterator[dict[str, str]]:
    """Serve ``HANDLER`` from a folder that has nothing to do with the project; yield what clients need to know."""
    (folder / "handler.py").write_text(HANDLER)
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RUNPOD_")}
    endpoint = [sys.executable, "-m", "aggregating_worker", "serve", "--port", "0", *options]
    with subprocess.Popen(
        [*endpoint, "--", python, "-u", "handler.py"],
        cwd=folder,
        env=bare,
        stdout=subprocess.PIPE,
        text=True,
    ) as served:
        assert served.stdout is not None
        url = next(line.split()[1] for line in served.stdout if line.startswith("Endpoint"))
        log = threading.Thread(target=served.stdout.read)  # the workers must not wait for a reader
        log.start()
        try:
            yield {**bare, "RUNPOD_ENDPOINT_BASE_URL": url.removesuffix("/local")}
        finally:
            served.terminate()
            log.join()


def said(environment: dict[str, str], *command: str | Path) -> dict[str, Any]:
    """Run a client; return what it says."""
    finished = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=120)
    assert finished.returncode == 0
    answer: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return answer


def test_the_javascript_client_works_unchanged(javascript: Path, tmp_path: Path) -> None:
    with serving(tmp_path, sys.executable) as environment:
        told = said(environment, "node", javascript)
    assert (told["sync"]["output"], told["sync"]["succeeded"]) == ([0, 1], True)
    assert (told["longer"]["output"], told["longer"]["succeeded"]) == ([3.5], True)
    assert told["stream"] == told["status"]["output"] == told["statusSync"]["output"] == [0, 1]
    assert told["cancel"]["status"] == "CANCELLED"
    assert told["health"].keys() == {"jobs", "workers"}
    assert told["purge"] == {"removed": 0, "status": "completed"}


def test_the_python_clients_work_unchanged(python: str, tmp_path: Path) -> None:
    (tmp_path / "client.py").write_text(PYTHON_CLIENT)
    with serving(tmp_path, sys.executable) as environment:
        told = said(environment, python, tmp_path / "client.py")
    assert told["sync"] == told["output"] == told["stream"] == [0, 1]
    assert told["async output"] == told["async stream"] == [0, 1]
    assert (told["status"], told["cancel"]) == ("COMPLETED", "CANCELLED")
    assert told["health"] == ["jobs", "workers"]
    assert told["purge"] == {"removed": 0, "status": "completed"}


def test_workers_of_any_sdk_answer_every_job(python: str, tmp_path: Path) -> None:
    """Also where one dies in the middle of a job, and another takes its place."""
    inputs: list[list[Any]] = [[0.2, number] for number in range(3)] + [[str(tmp_path / "died")]] + [[3]]
    with serving(tmp_path, python, "--workers", "2") as environment:
        url = f"{environment['RUNPOD_ENDPOINT_BASE_URL']}/local/runsync"

        def answered(items: list[Any]) -> Any:
            return httpx2.post(url, json={"input": {"items": items}}, headers=HEADERS, timeout=90).json()

        with ThreadPoolExecutor() as callers:
            states = [*callers.map(answered, inputs)]
        assert [state.get("output") for state in states] == inputs
        assert states[3]["retries"] == 1
        assert len({state["workerId"] for state in states}) > 1
        assert answered([0])["output"] == [0]
    assert not list(tmp_path.glob(".runpod_jobs*"))
