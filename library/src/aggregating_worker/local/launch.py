"""How a worker is started: as a process of this machine, or as a container of an image."""

import asyncio
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aggregating_worker.start_folder import copy_of

NO_HANDLER = "There is no handler.py in this folder: run this in a worker's project"


@dataclass(frozen=True)
class Command:
    """A command that runs a worker."""

    arguments: Sequence[str]
    host = "127.0.0.1"
    """This machine's name for the worker."""

    def line(self, name: str, variables: Iterable[str]) -> Sequence[str]:
        """Return the command of the worker ``name``; it inherits ``variables``."""
        del name, variables
        return self.arguments

    def folder(self, project: Path) -> Path:
        """Make a folder for one worker to run in, with what is in ``project``: what it writes there is its own."""
        return copy_of(project)

    async def clear(self, name: str, folder: Path) -> None:
        """Remove the folder of a worker whose command has ended, but not the files to which its links lead."""
        del name
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Image:
    """An image that holds a worker. ``options`` go to ``docker run``: ``--gpus all``, ``--env NAME=VALUE``."""

    name: str
    options: Sequence[str] = ()
    host = "127.0.0.1" if sys.platform == "linux" else "host.docker.internal"
    """This machine's name for the worker: Docker Desktop runs containers in a virtual machine."""

    def line(self, name: str, variables: Iterable[str]) -> Sequence[str]:
        """Return the command that runs the container ``name`` and passes it ``variables`` from its own environment."""
        network = ["--network", "host"] if sys.platform == "linux" else []
        passed = [part for variable in variables for part in ("--env", variable)]
        return ["docker", "run", "--rm", "--name", name, *network, *passed, *self.options, self.name]

    def folder(self, project: Path) -> Path:
        """Return the folder in which to call ``docker run``; the container has its own files."""
        return project

    async def clear(self, name: str, folder: Path) -> None:
        """Remove the container ``name``, which is still there if the ``docker run`` command was killed."""
        del folder
        quiet = asyncio.subprocess.DEVNULL
        removal = await asyncio.create_subprocess_exec(
            *["docker", "rm", "--force", name], stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
        )
        await removal.wait()
