"""What a worker is: a process of this machine, or a container of an image."""

import asyncio
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


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

    async def clear(self, name: str) -> None:
        """End what is left of the worker ``name`` once its command has ended: nothing."""


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

    async def clear(self, name: str) -> None:
        """Remove the container ``name`` if it is there: it outlives a command that was killed."""
        quiet = asyncio.subprocess.DEVNULL
        removal = await asyncio.create_subprocess_exec(
            *["docker", "rm", "--force", name], stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
        )
        await removal.wait()
