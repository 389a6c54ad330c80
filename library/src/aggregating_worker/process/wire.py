"""What the worker and a process of its task say to each other: frames on a socket, in both directions.

Pickles go in: items and options as they were validated. What comes out is never unpickled: a process that has gone
wrong can say wrong things, but it cannot make the worker run them.
"""

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import Any


class Ask(IntEnum):
    """What the worker says. The number is a call's or, of a job's frames, the job's."""

    BEGIN = 1
    """How many calls there may be at once."""
    JOB = 2
    """A job's id, its options and, for tasks that want a context, the job as the platform sent it."""
    FORGET = 3
    """The job is over."""
    CALL = 4
    """The items of a call, and the job's number and the index of each."""
    CANCEL = 5
    """Nobody waits for the call any more."""
    PING = 6
    END = 7
    """Unload, and exit."""


class Say(IntEnum):
    """What a process says. The number is a call's.

    No text in UTF-8 has these bytes: what the task writes into the socket by mistake is told apart at once.
    """

    READY = 0xF7
    UNUSABLE = 0xF8
    """``load`` failed or, if the number is 0, the task could not be imported: a ``Raised``."""
    LOGGED = 0xF9
    """A line of the task's for the log."""
    PART = 0xFA
    """A part of the call's only item, encoded."""
    MADE = 0xFB
    """The outcome of one of the call's items."""
    RAISED = 0xFC
    """The call has raised: a ``Raised``, and whether the process is broken."""
    ENDED = 0xFD
    """The function has returned. If something follows, there are more outcomes to come: of results with files."""
    PONG = 0xFE
    PROGRESS = 0xFF
    """How far one of the call's items is: its place, and a value, encoded."""


HEAD = struct.Struct("!BII")
"""The kind of a frame, a number, and how many bytes follow."""
OUTCOME = struct.Struct("!IBI")
"""The item's place in its call, ``Flag`` values, and how many pieces follow."""


class Flag(IntEnum):
    """What goes with an outcome."""

    SUCCESS = 1
    REFRESH = 2
    """The task asks for a new worker after the job."""
    RESTART = 4
    """The task asks for a new process."""
    FILES = 8
    """The pieces are a result with files in it, else one piece, the envelope."""


PLACE = struct.Struct("!I")
"""The item's place in its call, before its progress."""
Frame = tuple[int, int, bytes]


def frame(kind: int, number: int, *payload: bytes) -> bytes:
    """Return a frame as it is sent."""
    return b"".join((HEAD.pack(kind, number, sum(map(len, payload))), *payload))


def outcome(number: int, place: int, flags: int, pieces: Sequence[bytes]) -> bytes:
    """Return the frame with the outcome of the item at ``place`` of a call."""
    sizes = struct.pack(f"!{len(pieces)}I", *map(len, pieces))
    return frame(Say.MADE, number, OUTCOME.pack(place, flags, len(pieces)), sizes, *pieces)


def read_outcome(payload: bytes) -> tuple[int, int, list[bytes]]:
    """Return the place, the flags and the pieces of an outcome; raise ``ValueError`` if there is more or less."""
    place, flags, count = OUTCOME.unpack_from(payload)
    begin = OUTCOME.size + 4 * count
    pieces = []
    for size in struct.unpack_from(f"!{count}I", payload, OUTCOME.size):
        pieces.append(payload[begin : begin + size])
        begin += size
    if not pieces or begin != len(payload):
        raise ValueError("an outcome is not as long as it says")
    return place, flags, pieces


def values(*given: Any) -> bytes:
    """Return plain values as they are sent out of a process."""
    return json.dumps(given).encode()


class Frames:
    """The frames, of these kinds, in what is read from a socket."""

    def __init__(self, kinds: Iterable[int]) -> None:
        self._kinds = {*map(int, kinds)}
        self._unread = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that are complete with ``data``, each once; raise ``ValueError`` where none begins."""
        self._unread += data
        begin = 0
        try:
            while len(self._unread) >= begin + HEAD.size:
                kind, number, size = HEAD.unpack_from(self._unread, begin)
                if kind not in self._kinds:
                    raise ValueError(f"no frame begins with the byte {kind}")
                end = begin + HEAD.size + size
                if len(self._unread) < end:
                    break
                payload = bytes(self._unread[begin + HEAD.size : end])
                begin = end
                yield kind, number, payload
        finally:  # whoever takes the frames may raise
            del self._unread[:begin]
