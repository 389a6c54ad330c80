"""A worker imports what it uses at its start, and nothing else; the SDK's import is kept from failing."""

import json
import subprocess
import sys

import pytest

from tests.conftest import MakeWorker, off_runpod

LEFT_OUT = {"boto3", "botocore", "fastapi", "httpx", "hypothesis", "numpy", "pytest", "uvicorn"}


def test_starting_imports_nothing_that_waits_or_is_for_tests(make_worker: MakeWorker) -> None:
    """The SDK's probe of the processor, most of its import time, is left out, too."""
    look = (
        "import sys; started = [];"
        "sys.addaudithook(lambda event, about: event == 'subprocess.Popen' and started.append(str(about[1])));"
        "import json, handler; print(json.dumps([started, list(sys.modules)]))"
    )
    printed = subprocess.check_output([sys.executable, "-c", look], cwd=make_worker("unloadable"), text=True)
    started, modules = json.loads(printed)
    assert not [command for command in started if "cpuinfo" in command]
    assert not LEFT_OUT & set(modules)


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
