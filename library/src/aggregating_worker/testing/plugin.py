"""The pytest plugin: workers of the project that is tested, in their production loop."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aggregating_worker.proxies import not_for_this_machine

if TYPE_CHECKING:
    from aggregating_worker.testing.caller import Caller, Serve

pytest.register_assert_rewrite("aggregating_worker.testing.promises", "aggregating_worker.testing.trial")


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker of the promises, and reach the local endpoint whatever proxy is in use."""
    not_for_this_machine()
    config.addinivalue_line(
        "markers", "promise: what the worker promises, tried on the task (-m 'not promise': without)"
    )


@pytest.fixture(scope="session")
def worker_env() -> Mapping[str, str]:
    """Return variables for the workers in the tests; a project may have a fixture of this name with its own."""
    return {}


@pytest.fixture(scope="session")
def make_log() -> Iterator[Callable[[], Path]]:
    """Make a file for a worker's log."""
    with tempfile.TemporaryDirectory(prefix="worker-log-") as folder:
        yield lambda: Path(tempfile.mkdtemp(dir=folder), "worker.log")


@pytest.fixture(scope="module")
def serve(
    pytestconfig: pytest.Config, worker_env: Mapping[str, str], make_log: Callable[[], Path]
) -> "Iterator[Serve]":
    """Serve an endpoint whose workers run this project under the given settings, until the module is done."""
    from aggregating_worker.local.server import LocalEndpoint
    from aggregating_worker.testing.caller import Caller

    with ExitStack() as stack:

        def start(workers: int = 1, **env: str) -> "Caller":
            log = make_log()
            output = stack.enter_context(log.open("wb"))
            endpoint = LocalEndpoint(cwd=pytestconfig.rootpath, workers=workers, env={**worker_env, **env}, log=output)
            return stack.enter_context(Caller(stack.enter_context(endpoint), log))

        yield start
