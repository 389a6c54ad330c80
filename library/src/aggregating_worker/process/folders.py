"""The folders that items ask for: named by the process that made them, so that another can remove them after it."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class Folders:
    """Those whose paths begin with ``beginning``."""

    beginning: str

    @classmethod
    def new(cls) -> Self:
        """Return those of processes that are yet to be started; no other worker has any that begin like them."""
        try:
            parent = tempfile.gettempdir()
        except OSError:  # nothing can be written anywhere, which is for the item to hear that wants to
            parent = "/tmp"  # noqa: S108  # a name that ``make`` fails to make
        return cls(os.path.join(parent, f"aggregating-worker-{secrets.token_hex(8)}"))  # noqa: PTH118

    def of(self, pid: int) -> "Folders":
        """Return those of one process."""
        return Folders(f"{self.beginning}-{pid}-")

    def make(self) -> str:
        """Make another. Raises ``OSError``."""
        return tempfile.mkdtemp(prefix=self.beginning, dir="")

    def found(self) -> list[Path]:
        """Return those that are there."""
        parent, name = os.path.split(self.beginning)
        try:
            there = os.listdir(parent)  # noqa: PTH208  # and not by ``glob``, which keeps each pattern
        except OSError:
            return []
        return [Path(parent, each) for each in there if each.startswith(name)]


def remove(folders: Iterable[Path]) -> None:
    """Remove folders with all that is in them, as far as that can be. Blocks."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
