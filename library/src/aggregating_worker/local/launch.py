"""How a worker is started: as a process of this machine, or as a container of an image."""

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

NO_HANDLER = "There is no handler.py in this folder: run this in a worker's project"
SDK_STATE = ".runpod_jobs.pkl"
"""Where SDKs 1.7.12 to 1.10.0 keep their jobs (``worker_state.py``), in the folder in which they are started."""
COPIED = 16_000_000
"""Bytes of a file that is copied for each worker; a larger one, such as a model, is linked."""
ROOM = 1_000_000_000
"""Bytes that are copied for each worker in all: a command may be started anywhere, even in a home folder."""
OWN_BYTES = 200_000
"""What a file counts for beside its size, so that there are at most 5,000 of them."""
LINKED = {".git", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache", "node_modules"}
"""Folders that no worker writes to, and that are too large to be copied at each start; so are virtual environments."""


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
        folder = Path(tempfile.mkdtemp(prefix="worker-"))
        try:
            Copy(project.absolute(), folder)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder

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


class Copy:
    """Copies ``project`` into ``folder``; large files, and folders that are not the project's own, are linked.

    So are pipes and other things that are no files, what cannot be read, and what is left when there is no more room.
    """

    def __init__(self, project: Path, folder: Path) -> None:
        self._room = ROOM
        folders = [(project, folder)]
        for source, target in folders:  # which grows: what is nearest to the top is copied first
            for entry in sorted(source.iterdir()):
                place = target / entry.name
                if entry.name.startswith(SDK_STATE):
                    continue
                if entry.is_dir() and entry.samefile(folder):  # if the project is where temporary files are
                    continue
                if entry.is_dir() and self._is_the_projects(entry):
                    place.mkdir()
                    folders.append((entry, place))
                elif not (entry.is_file() and self._copy(entry, place)):
                    place.symlink_to(entry)

    def _is_the_projects(self, entry: Path) -> bool:
        return not (
            entry.name in LINKED
            or entry.is_symlink()
            or (entry / "pyvenv.cfg").exists()
            or not os.access(entry, os.R_OK | os.X_OK)
            or self._room <= 0
        )

    def _copy(self, entry: Path, place: Path) -> bool:
        size = entry.stat().st_size
        if size > COPIED or self._room <= 0:
            return False
        self._room -= size + OWN_BYTES
        try:
            shutil.copy2(entry, place)
        except OSError:
            place.unlink(missing_ok=True)
            return False
        return True
