"""What is done of a long list, on disk. Lines are only ever appended, so a kill can damage only the last one.

The first line says with what the list is done: the endpoint and the options. Each later line is a job or a batch that
was submitted, with its items, or the envelope of an item, or again a first line, where a run went on with something
else. Items are known by their content: a line of the list may be mended, moved or added. Of what is said of an item,
the last counts. Each line ends with a checksum of itself and of the one before: what was changed, lost, doubled or
moved in between is skipped, and counted.
"""

import os
from array import array
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from zlib import crc32

from aggregating_worker.client.envelopes import Envelope, encode, is_envelope, parse
from aggregating_worker.client.http import CallFailed
from aggregating_worker.client.items import Items
from aggregating_worker.sentence import counted, one_line, reason

VERSION = 3
CHECK = b', "check": "%08x"}\n'
"""How a line ends."""


class BegunOtherwise(CallFailed):
    """The journal was begun with another endpoint or other options: whoever asks may agree to go on."""


class Journal:
    """The journal beside ``out``: a context manager that locks the file and reads what is in it.

    ``of`` says with what the list is done, by the names that a user has for it. Raises ``CallFailed`` if another
    process has the journal open, if it is no journal, or if there is none and ``out`` would be overwritten, and
    ``BegunOtherwise`` if it was begun with something else, unless that is ``agreed``.
    """

    def __init__(self, out: Path, of: Mapping[str, Any], items: Items, *, agreed: bool = False) -> None:
        if not out.name or out.is_dir():
            raise CallFailed(f"{out} is a folder: choose a file for --out.")
        self.path = out.with_name(out.name + ".journal")
        self.done = 0
        """How many items are done, be it that they failed."""
        self.accepted = False
        """Whether the endpoint has brought a result of the list, with these options."""
        self.damaged = 0
        """How many lines cannot be read, or are not where they were written."""
        self._end = b""
        """How the last line ends."""
        self._out = out
        self._of = dict(of)
        self._begun: dict[str, Any] = {}
        """The last first line that was read."""
        self._items = items
        self._agreed = agreed
        self._places = array("q", [-1]) * len(items)
        """Where each item's envelope starts in the journal, or -1."""
        self._failed = set[int]()
        self._jobs: list[tuple[str | None, array[int]]] = []
        """The jobs' ids, if known, and the indices of their items; -1 for what is no longer in the list."""
        self._owed: dict[int, int] = {}
        """The job that each item is in, by its place in ``_jobs``, until its envelope is here."""

    def __enter__(self) -> Self:
        if self._out.exists() and not self.path.exists():
            raise CallFailed(f"{self._out} exists, and there is no {self.path} to continue from: choose another --out.")
        if self.path.exists() and not self.path.is_file():
            raise CallFailed(f"{self.path} is not a file: choose another --out.")
        self._file = self.path.open("a+b")
        try:
            self._lock()
            self._recover()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        """Unlock the file and close it: a fork of this process has it open, too, until it runs another program."""
        with suppress(ImportError):
            import fcntl

            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._file.close()

    def __contains__(self, index: int) -> bool:
        """Whether an item has an envelope; -1, which stands for none, needs none."""
        return index < 0 or self._places[index] >= 0

    @property
    def failed(self) -> int:
        """How many of the items that are done have failed."""
        return len(self._failed)

    def unfinished(self) -> list[tuple[str, list[int]]]:
        """Return the jobs that still owe results, the latest first, with their items; -1 for one that it does not owe.

        What it does not owe is done, no longer in the list, or in a later job, which alone is asked for it.
        """
        jobs = [(number, *self._jobs[number]) for number in sorted({*self._owed.values()}, reverse=True)]
        return [
            (job_id, [index if self._owed.get(index) == number else -1 for index in indices])
            for number, job_id, indices in jobs
            if job_id is not None
        ]

    def unknown(self) -> dict[int, int]:
        """Return the items of which it is not known whether the endpoint has them, each with the job it was put in."""
        return {index: number for index, number in self._owed.items() if self._jobs[number][0] is None}

    def ask_again(self) -> None:
        """Forget which items failed, and which may be in a job that is not known."""
        for index in self.unknown():
            del self._owed[index]
        for index in self._failed:
            self._places[index] = -1
        self.done -= len(self._failed)
        self._failed.clear()

    def submitted(self, job_id: str | None, indices: list[int]) -> None:
        """Write down that a job was submitted for the items at ``indices``, or with None, that it may have been."""
        self._append(encode({"job": job_id, "items": [self._items.key(index) for index in indices]}))
        self._hand_over(job_id, array("q", indices))

    def record(self, envelope: Envelope) -> None:
        """Write down an item's envelope, whose index is the one in the whole list; only an item's first one counts."""
        if envelope["index"] not in self:
            line = encode({"item": self._items.key(envelope["index"]), **envelope})
            self._note(envelope, self._append(line))

    def write_output(self, *, keep: bool = False) -> dict[int, str]:
        """Write all envelopes to the output, in order, and return the failures, by index.

        The output file appears only once it is complete. The journal is then removed, unless an item has failed or it
        is to be kept.
        """
        failures: dict[int, str] = {}
        unfinished = self._out.with_name(self._out.name + ".unfinished")
        unfinished.unlink(missing_ok=True)
        with unfinished.open("xb") as output, self.path.open("rb") as lines:  # x: a link there is not followed
            for index, place in enumerate(self._places):
                lines.seek(place)
                entry = parse(lines.readline())
                del entry["item"], entry["check"]
                entry["index"] = index  # it may have moved
                output.write(encode(entry) + b"\n")
                if index in self._failed:
                    failures[index] = one_line(reason(entry["failure"]["type"], entry["failure"]["message"]))
            output.flush()
            os.fsync(output.fileno())
        unfinished.replace(self._out)
        if not (keep or failures):
            self.path.unlink(missing_ok=True)
        return failures

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:
            raise CallFailed("map needs file locks as on Linux and macOS (fcntl), which this system lacks.") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CallFailed(f"{self._out} is being written by another process: wait for it, or stop it.") from None

    def _recover(self) -> None:
        header = encode({"journal": VERSION, **self._of})
        self._file.seek(0)
        first = self._file.readline()
        if _checked(header, b"")[:-1].startswith(first):  # nothing, or a part of it, was written
            self._file.truncate(0)
            self._append(header)
            return
        known = {self._items.key(index): index for index in range(len(self._items))}
        others = self._read(first, 0, known)
        if not self._begun:
            raise CallFailed(f"{self.path} is not a journal of this version's map: choose another --out, or remove it.")
        place = len(first)
        for line in self._file:
            if not line.endswith(b"\n"):  # torn by a kill
                self._file.truncate(place)
                self.damaged += 1
                break
            others |= self._read(line, place, known)
            place += len(line)
        names = [name for name in {**self._begun, **self._of} if self._begun.get(name) != self._of.get(name)]
        if others and self.done == self.failed:
            names.append("list")
        if names and not self._agreed:
            raise BegunOtherwise(self._difference(names))
        if names:
            self._append(header)
            self._begin({})

    def _difference(self, names: list[str]) -> str:
        kept = counted(self.done, "item")
        running = f", and asks again for {counted(len(self._owed), 'item')} that may be running" if self._owed else ""
        return (
            f"{self.path} was begun with another {' and another '.join(names)}. To go on keeps what it has of "
            f"{kept}{running}."
        )

    def _read(self, line: bytes, place: int, known: Mapping[str, int]) -> bool:
        """Take in the line that starts at ``place``; if it is damaged, its items are simply requested again.

        Return whether it is the result of an item that is not in the list.
        """
        content, before = line[: -len(CHECK % 0)] + b"}", self._end
        self._end = line[-len(CHECK % 0) :]
        if _checked(content, before) != line:
            self.damaged += 1
            return False
        entry = parse(content)
        match entry:
            case {"journal": version} if version == VERSION:
                self._begin({name: value for name, value in entry.items() if name != "journal"})
            case {"job": str() | None as job_id, "items": [*keys]} if all(isinstance(key, str) for key in keys):
                self._hand_over(job_id, array("q", (known.get(key, -1) for key in keys)))
            case {"item": str(key)} if is_envelope(entry):
                if key not in known:
                    return entry["success"]
                entry["index"] = known[key]
                self._note(entry, place)
        return False

    def _begin(self, of: dict[str, Any]) -> None:
        """Go on with something else, which has none of the jobs so far."""
        self._begun = of
        self._owed.clear()
        self.accepted = False

    def _hand_over(self, job_id: str | None, indices: "array[int]") -> None:
        for index in indices:
            if index in self._failed:  # it is asked for again
                self._places[index] = -1
                self._failed.discard(index)
                self.done -= 1
            if index not in self:
                self._owed[index] = len(self._jobs)
        self._jobs.append((job_id, indices))

    def _note(self, envelope: Envelope, place: int) -> None:
        index = envelope["index"]
        self.done += index not in self
        self._places[index] = place
        self._owed.pop(index, None)
        if envelope["success"]:
            self._failed.discard(index)
            self.accepted = True
        else:
            self._failed.add(index)

    def _append(self, line: bytes) -> int:
        """Append a line and return where it starts."""
        self._file.seek(0, os.SEEK_END)
        place = self._file.tell()
        checked = _checked(line, self._end)
        self._file.write(checked)
        self._file.flush()
        self._end = checked[-len(CHECK % 0) :]
        return place


def _checked(line: bytes, before: bytes) -> bytes:
    """Return ``line``, a JSON object, with its checksum; ``before`` is how the line before it ends."""
    return line[:-1] + CHECK % crc32(line, crc32(before))
