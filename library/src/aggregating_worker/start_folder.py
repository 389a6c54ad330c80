"""The folder in which a worker starts: it has what is in the project's, and what the worker writes there is its own."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager, suppress
from pathlib import Path

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


@contextmanager
def writable() -> Iterator[None]:
    """Work in a copy of the current folder where that cannot be written, as in the image; remove the copy at the end.

    The SDK's ``rp_download`` and ``rp_upload`` (1.12.0) write to the folder in which the worker runs.
    """
    here = Path.cwd()
    with ExitStack() as stack:
        if not os.access(here, os.W_OK) and here != here.parent:  # "/" holds the system, and no copy of that is wanted
            with suppress(OSError):  # nothing can be written anywhere, which is for the task to hear that wants to
                folder = copy_of(here)
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                stack.enter_context(chdir(folder))
        yield


def copy_of(project: Path) -> Path:
    """Make a folder for one worker, with what is in ``project``. Raises ``OSError``."""
    folder = Path(tempfile.mkdtemp(prefix="worker-"))
    try:
        Copy(project.absolute(), folder)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


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
            or not os.access(entry, os.R_OK | os.X_OK)
            or (entry / "pyvenv.cfg").exists()
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
