"""Prepares for the import of the SDK (1.12.0), which without it would be slow, or fail with a traceback."""

import io
import logging
import os
import signal
import sys
from contextlib import suppress
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from types import ModuleType
from typing import Any

from aggregating_worker.context import progress_update

LOG_LEVELS = ("NOTSET", "TRACE", "DEBUG", "INFO", "WARN", "ERROR")
INTEGERS = ("RUNPOD_PING_INTERVAL", "RUNPOD_REALTIME_PORT", "RUNPOD_REALTIME_CONCURRENCY")


class Log(io.FileIO):
    """A file that never raises: what a full disk does not take is dropped."""

    def write(self, data: Any, /) -> int:
        """Write ``data``, bytes; never raises."""
        with suppress(OSError):
            return super().write(data)
        return len(data)


def prepare() -> None:
    """Prepare for the SDK's import, in the worker and where the task runs, which may import it, too."""
    # ``utils/rp_debugger.py`` asks py-cpuinfo for the processor's name. That takes a second, most of a worker's start,
    # and only ``--rp_debugger`` would print it. Without an answer the SDK says that there is none.
    _import_when_used("cpuinfo", get_cpu_info=dict)
    logging.root.setLevel(logging.INFO)  # as ``rp_upload.py`` would, if it did not find a handler of the worker's
    _import_when_used("paramiko")  # by the SDK's command line alone, which no worker calls; a quarter of the rest
    _replace_progress_update()
    _keep_writing()


def _replace_progress_update() -> None:
    """Have whoever imports the SDK's ``progress_update`` get the worker's.

    The SDK's (``rp_progress.py``) posts from a thread of its own. An update that arrives after the job's result leaves
    the job in progress for ever (runpod-python#250).
    """
    for module in filter(None, map(sys.modules.get, (ReplacedProgress.NAME, "runpod.serverless"))):
        setattr(module, "progress_update", progress_update)  # noqa: B010  # a module has no such attribute to mypy
    if not any(isinstance(finder, ReplacedProgress) for finder in sys.meta_path):
        sys.meta_path.insert(0, ReplacedProgress())


class ReplacedProgress(MetaPathFinder, Loader):
    """Finds a module in place of the SDK's of this name."""

    NAME = "runpod.serverless.modules.rp_progress"

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        """Return how to load the module, if it is that one."""
        del path, target
        return spec_from_loader(fullname, self) if fullname == self.NAME else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the worker's function into the module."""
        setattr(module, "progress_update", progress_update)  # noqa: B010


def _import_when_used(name: str, **instead: Any) -> None:
    """Have ``import name`` give a stand-in with ``instead``, which imports that module when something else is used."""
    if name in sys.modules or find_spec(name) is None:
        return
    stand_in = ModuleType(name)
    vars(stand_in).update(instead)

    def load(attribute: str) -> Any:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
        return getattr(import_module(name), attribute)

    setattr(stand_in, "__getattr__", load)  # noqa: B010  # as PEP 562 has it; mypy would have it a method
    sys.modules[name] = stand_in


def check_environment() -> None:
    """Check the variables that ``rp_logger.py`` and ``rp_ping.py`` read at import, and ``start`` later, as they do.

    Ends the process with a sentence if one would make them fail.
    """
    level = "RUNPOD_LOG_LEVEL" if "RUNPOD_LOG_LEVEL" in os.environ else "RUNPOD_DEBUG_LEVEL"
    if os.environ.get(level, "DEBUG").upper() not in LOG_LEVELS:
        sys.exit(f"Check the environment: {level} should be one of {', '.join(LOG_LEVELS)}.")
    for name in INTEGERS:
        try:
            int(os.environ.get(name, "0"))
        except ValueError:
            sys.exit(f"Check the environment: {name} should be a whole number.")


def _keep_writing() -> None:
    """Keep a character that the terminal cannot show, or a full disk, from failing a job or ending the worker.

    ``rp_logger.py`` prints job inputs and results as they are, in the loops of ``rp_scale.py``, too; a task may print.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper:  # not what a test runner has put there
            log = io.BufferedWriter(Log(stream.fileno(), "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(log, stream.encoding, "backslashreplace", line_buffering=True))


def end_on_interrupt() -> None:
    """Have Ctrl-C end the process at once, until the SDK takes jobs and handles signals itself.

    Not by an exception: it would print a traceback, and a task might catch it.
    """

    def end(*_: object) -> None:
        try:
            os.write(2, b"Stopped.\n")
        finally:
            os._exit(1)

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as after nohup
        signal.signal(signal.SIGINT, end)
