"""What is done of a long list, on disk: lines are appended and never changed, so that a kill can tear only the last.

The first line says what the journal is of. Each later one is a job or a batch that was submitted, with the indices of
its items in the list; that a batch was about to be made; or the envelope of an item, as it will stand in the output. A
line that cannot be read costs itself only.
"""

import fcntl
import os
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from aggregating_worker.client.envelopes import Envelope, encode, is_envelope, parse
from aggregating_worker.client.http import CallFailed


class Journal:
    """The journal beside ``out``, as a context manager that keeps others from it; what it already has is read.

    ``of`` names what is being done, and ``items`` how many items there are. Raises ``CallFailed`` if another process
    has the journal, if it is of something else, or if there is none and ``out`` would be overwritten.
    """

    def __init__(self, out: Path, of: Mapping[str, Any], items: int) -> None:
        self.path = out.with_name(out.name + ".journal")
        self.done = self.failed = self.damaged = 0
        """Items that are done, those of them that failed, and lines that could not be read."""
        self.drafted: list[int] = []
        """When batches were about to be made, in milliseconds since 1970."""
        self._out = out
        self._header = encode(of) + b"\n"
        self._places = array("q", [-1]) * items
        """Where each item's envelope is in the journal; -1: nowhere yet."""
        self._jobs: dict[str, array[int]] = {}

    def __enter__(self) -> Self:
        if self._out.exists() and not self.path.exists():
            raise CallFailed(f"{self._out} exists, and has no journal to go on from: choose another --out.")
        self._file = self.path.open("a+b")
        try:
            self._lock()
            self._recover()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, index: int) -> bool:
        return self._places[index] >= 0

    def unfinished(self) -> list[tuple[str, list[int]]]:
        """Return the jobs to go on waiting for, each with all of its items: an item is the last one's that had it."""
        jobs = []
        claimed: set[int] = set()
        for job_id, indices in reversed(self._jobs.items()):
            if left := [index for index in indices if index not in self and index not in claimed]:
                claimed.update(left)
                jobs.append((job_id, list(indices)))
        return jobs

    def submitted(self, job_id: str, indices: list[int]) -> None:
        """Note that a job has been submitted for the items at ``indices``."""
        self._append(encode({"job": job_id, "indices": indices}))

    def drafting(self, at: int) -> None:
        """Note that a batch is about to be made."""
        self._append(encode({"draft": at}))
        self.drafted.append(at)

    def record(self, envelope: Envelope) -> None:
        """Keep an item's envelope, with its index in the whole list; the first one is kept."""
        if envelope["index"] not in self:
            self._note(envelope, self._append(encode(envelope)))

    def write_output(self, *, keep: bool = False) -> None:
        """Write every envelope to the output, in order, and unless told to ``keep`` it remove the journal.

        The output is there whole or not at all.
        """
        unfinished = self._out.with_name(self._out.name + ".unfinished")
        with unfinished.open("wb") as output, self.path.open("rb") as lines:
            for place in self._places:
                lines.seek(place)
                output.write(lines.readline())
            output.flush()
            os.fsync(output.fileno())
        unfinished.replace(self._out)
        if not keep:
            self.path.unlink(missing_ok=True)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CallFailed(f"{self._out} is being written by another process: wait for it, or stop it.") from None

    def _recover(self) -> None:
        self._file.seek(0)
        header = self._file.readline()
        if header != self._header:
            if not self._header.startswith(header):  # as it does where nothing, or half of it, was written
                raise CallFailed(
                    f"{self.path} is of other items, another job or other --files: choose another --out, or remove it."
                )
            self._file.truncate(0)
            self._append(self._header.rstrip(b"\n"))
            return
        place = len(header)
        for line in self._file:
            if not line.endswith(b"\n"):  # torn by a kill
                self._file.truncate(place)
                break
            self.damaged += not self._read(line, place)
            place += len(line)

    def _read(self, line: bytes, place: int) -> bool:
        """Take in a line that begins at ``place``; return whether it can be read."""
        try:
            entry = parse(line)
        except ValueError:
            return False
        match entry:
            case {"job": str(job_id), "indices": [*indices]} if all(
                type(index) is int and index in range(len(self._places)) for index in indices
            ):
                self._jobs[job_id] = array("q", indices)
            case {"draft": int(at)}:
                self.drafted.append(at)
            case _ if is_envelope(entry) and entry["index"] < len(self._places):
                if entry["index"] not in self:
                    self._note(entry, place)
            case _:
                return False
        return True

    def _note(self, envelope: Envelope, place: int) -> None:
        self._places[envelope["index"]] = place
        self.done += 1
        self.failed += not envelope["success"]

    def _append(self, line: bytes) -> int:
        """Append a line and return where it begins."""
        self._file.seek(0, os.SEEK_END)
        place = self._file.tell()
        self._file.write(line + b"\n")
        self._file.flush()
        return place
