"""What a worker is: a process of this machine, or a container of an image."""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

SDK_STATE = ".runpod_jobs.pkl"
"""Where SDKs 1.7.12 to 1.10.0 keep the jobs in hand (``worker_state.py``): in the folder that they are started in."""


@dataclass(frozen=True)
class Command:
    """A command that is a worker while it runs."""

    arguments: Sequence[str]
    host = "127.0.0.1"
    """Where the worker finds this machine."""

    def line(self, name: str, variables: Iterable[str]) -> Sequence[str]:
        """Return the command of the worker ``name``; it inherits ``variables``."""
        del name, variables
        return self.arguments

    def folder(self, project: Path) -> Path:
        """Make a worker a folder of its own to run in, with links to all that is in ``project``."""
        folder = Path(tempfile.mkdtemp(prefix="worker-"))
        for entry in project.iterdir():
            if not entry.name.startswith(SDK_STATE):
                (folder / entry.name).symlink_to(entry.absolute())
        return folder

    async def clear(self, name: str, folder: Path) -> None:
        """Remove what is left of the worker ``name`` once its command has ended: its folder, not what links lead to."""
        del name
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Image:
    """An image that holds a worker. ``options`` go to ``docker run``: ``--gpus all``, ``--env NAME=VALUE``."""

    name: str
    options: Sequence[str] = ()
    host = "127.0.0.1" if sys.platform == "linux" else "host.docker.internal"
    """Where the worker finds this machine: Docker Desktop runs containers in a machine of their own."""

    def line(self, name: str, variables: Iterable[str]) -> Sequence[str]:
        """Return the command of the container ``name``; it is given ``variables`` out of the command's environment."""
        network = ["--network", "host"] if sys.platform == "linux" else []
        passed = [part for variable in variables for part in ("--env", variable)]
        return ["docker", "run", "--rm", "--name", name, *network, *passed, *self.options, self.name]

    def folder(self, project: Path) -> Path:
        """Return where ``docker run`` is called: the container has files of its own."""
        return project

    async def clear(self, name: str, folder: Path) -> None:
        """Remove the container ``name`` if it is there: it outlives a command that was killed."""
        del folder
        quiet = asyncio.subprocess.DEVNULL
        removal = await asyncio.create_subprocess_exec(
            *["docker", "rm", "--force", name], stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
        )
        await removal.wait()
