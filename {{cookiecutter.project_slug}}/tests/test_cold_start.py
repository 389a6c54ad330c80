"""A worker imports what it uses at its start, and nothing else."""

import json
import subprocess
import sys

from tests.conftest import MakeWorker

LEFT_OUT = {"boto3", "botocore", "fastapi", "httpx", "hypothesis", "numpy", "pytest", "uvicorn"}


def test_starting_imports_nothing_that_waits_or_is_for_tests(make_worker: MakeWorker) -> None:
    """And the SDK's probe of the processor, most of its import, is left out."""
    look = (
        "import json, sys, handler; from runpod.serverless.utils import rp_debugger;"
        "print(json.dumps([rp_debugger.PROCESSOR, list(sys.modules)]))"
    )
    printed = subprocess.check_output([sys.executable, "-c", look], cwd=make_worker("unloadable"), text=True)
    processor, modules = json.loads(printed)
    assert processor == "Unable to get processor info."
    assert not LEFT_OUT & set(modules)
