"""A worker imports what it uses at its start, and nothing else; the SDK's import is kept from failing."""

import json
import subprocess
import sys

import pytest

from tests.conftest import MakeWorker, off_runpod

LEFT_OUT = {"boto3", "botocore", "fastapi", "httpx", "httpx2", "hypothesis", "numpy", "pytest", "uvicorn"}
LOOK = """
import json, runpy, sys
started = []
sys.addaudithook(lambda event, about: event == "subprocess.Popen" and started.append(str(about[1])))
try:
    runpy.run_path("handler.py", run_name="__main__")
finally:
    print(json.dumps([started, list(sys.modules)]))
"""


def test_starting_imports_nothing_that_waits_or_is_for_tests(make_worker: MakeWorker) -> None:
    """The SDK's probe of the processor and its SSH client, most of its import time, are left out, too."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK], cwd=make_worker("unloadable"), stdout=subprocess.PIPE, text=True
    )
    started, modules = json.loads(done.stdout.splitlines()[-1])
    assert "runpod.serverless" in modules
    assert not [command for command in started if "cpuinfo" in command]
    assert not LEFT_OUT & set(modules)
    assert not {"cpuinfo.cpuinfo", "paramiko.client"} & set(modules)


def test_the_process_of_the_task_does_not_wait_for_the_sdk() -> None:
    code = "import json, sys; import aggregating_worker.process.inside; print(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert not (LEFT_OUT | {"runpod", "aiohttp"}) & set(json.loads(done.stdout))


def test_what_is_left_out_is_there_for_a_task_that_uses_it() -> None:
    use = "from aggregating_worker import before_sdk; before_sdk.prepare(); import cpuinfo, runpod, paramiko; "
    used = "paramiko.SSHClient()", "from paramiko import SSHClient", "import paramiko.client", "cpuinfo.CPUINFO_VERSION"
    for line in used:
        subprocess.run([sys.executable, "-c", use + line], check=True)


@pytest.mark.parametrize("name", ["RUNPOD_LOG_LEVEL", "RUNPOD_PING_INTERVAL", "RUNPOD_REALTIME_CONCURRENCY"])
def test_a_variable_that_the_sdk_cannot_read_is_a_sentence(make_worker: MakeWorker, name: str) -> None:
    finished = subprocess.run(
        [sys.executable, "handler.py"],
        cwd=make_worker("unloadable"),
        env=off_runpod(**{name: "loud"}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert finished.returncode == 1
    assert finished.stderr.startswith(f"Check the environment: {name} should be ")
    assert finished.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "name",
    [
        "runpod.serverless.progress_update",
        "runpod.serverless.modules.rp_progress.progress_update",
        "__import__('importlib').import_module('runpod.serverless.modules.rp_progress').progress_update",
    ],
)
def test_the_sdks_progress_update_is_the_workers_under_any_name(name: str) -> None:
    program = f"""
from aggregating_worker import before_sdk, context
before_sdk.prepare()
import runpod
assert {name} is context.progress_update
"""
    subprocess.run([sys.executable, "-c", program], env=off_runpod(), check=True, timeout=60)
