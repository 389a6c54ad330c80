"""What is done of a long list, on disk. Lines are only ever appended, so a kill can damage only the last one.

The first line says which list and job the journal belongs to. Each later line is a job or a batch that was submitted,
with the indices of its items in the list, or the envelope of an item, as it will be in the output. A line that cannot
be read is skipped.
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
    """The journal beside ``out``: a context manager that locks the file and reads what is in it.

    ``of`` is its first line, and ``items`` how many items the list has. Raises ``CallFailed`` if another process has
    the journal open, if its first line is another, or if there is no journal and ``out`` would be overwritten.
    """

    def __init__(self, out: Path, of: Mapping[str, Any], items: int) -> None:
        self.path = out.with_name(out.name + ".journal")
        self.done = self.failed = 0
        """How many items are done, and how many of those failed."""
        self._out = out
        self._header = encode(of) + b"\n"
        self._places = array("q", [-1]) * items
        """Where each item's envelope starts in the journal, or -1."""
        self._jobs: dict[str, array[int]] = {}

    def __enter__(self) -> Self:
        if self._out.exists() and not self.path.exists():
            raise CallFailed(f"{self._out} exists, and there is no {self.path} to continue from: choose another --out.")
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
        """Return the jobs that still owe results, the latest first, each with all of its items.

        An item that was submitted twice belongs to its latest job.
        """
        jobs = []
        claimed: set[int] = set()
        for job_id, indices in reversed(self._jobs.items()):
            if left := [index for index in indices if index not in self and index not in claimed]:
                claimed.update(left)
                jobs.append((job_id, list(indices)))
        return jobs

    def submitted(self, job_id: str, indices: list[int]) -> None:
        """Write down that a job was submitted for the items at ``indices``."""
        self._append(encode({"job": job_id, "indices": indices}))

    def record(self, envelope: Envelope) -> None:
        """Write down an item's envelope, whose index is the one in the whole list; only an item's first one counts."""
        if envelope["index"] not in self:
            self._note(envelope, self._append(encode(envelope)))

    def write_output(self, *, keep: bool = False) -> None:
        """Write all envelopes to the output, in order, and remove the journal unless told to ``keep`` it.

        The output file appears only once it is complete.
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
            if not self._header.startswith(header):  # nothing, or a part of it, was written
                raise CallFailed(
                    f"{self.path} belongs to other items, or to another --job, --files or --batch: "
                    "choose another --out, or remove it."
                )
            self._file.truncate(0)
            self._append(self._header.rstrip(b"\n"))
            return
        place = len(header)
        for line in self._file:
            if not line.endswith(b"\n"):  # torn by a kill
                self._file.truncate(place)
                break
            self._read(line, place)
            place += len(line)

    def _read(self, line: bytes, place: int) -> None:
        """Take in the line that starts at ``place``; if it is damaged, its items are simply requested again."""
        try:
            entry = parse(line)
        except ValueError:
            return
        match entry:
            case {"job": str(job_id), "indices": [*indices]} if all(
                type(index) is int and index in range(len(self._places)) for index in indices
            ):
                self._jobs[job_id] = array("q", indices)
            case _ if is_envelope(entry) and entry["index"] < len(self._places) and entry["index"] not in self:
                self._note(entry, place)

    def _note(self, envelope: Envelope, place: int) -> None:
        self._places[envelope["index"]] = place
        self.done += 1
        self.failed += not envelope["success"]

    def _append(self, line: bytes) -> int:
        """Append a line and return where it starts."""
        self._file.seek(0, os.SEEK_END)
        place = self._file.tell()
        self._file.write(line + b"\n")
        self._file.flush()
        return place
