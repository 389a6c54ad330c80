"""What the worker and a process of its task say to each other: frames on a socket, in both directions.

Pickles go in: items and options as they were validated. What comes out is never unpickled: a process that has gone
wrong can say wrong things, but it cannot make the worker run them.
"""

import json
import struct
from collections.abc import Iterator, Sequence
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
    """What a process says. The number is a call's."""

    READY = 1
    UNUSABLE = 2
    """``load`` failed or, if the number is 0, the task could not be imported: a ``Raised``."""
    LOGGED = 3
    """A line of the task's for the log."""
    PART = 4
    """A part of the call's only item, encoded."""
    MADE = 5
    """The outcome of one of the call's items."""
    RAISED = 6
    """The call has raised: a ``Raised``, and whether the process is broken."""
    ENDED = 7
    """The function has returned. If something follows, there are more outcomes to come: of results with files."""
    PONG = 8
    PROGRESS = 9
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
    """Return the place, the flags and the pieces of an outcome."""
    place, flags, count = OUTCOME.unpack_from(payload)
    begin = OUTCOME.size + 4 * count
    pieces = []
    for size in struct.unpack_from(f"!{count}I", payload, OUTCOME.size):
        pieces.append(payload[begin : begin + size])
        begin += size
    return place, flags, pieces


def values(*given: Any) -> bytes:
    """Return plain values as they are sent out of a process."""
    return json.dumps(given).encode()


class Frames:
    """The frames in what is read from a socket."""

    def __init__(self) -> None:
        self._unread = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that are complete with ``data``."""
        self._unread += data
        begin = 0
        while len(self._unread) >= begin + HEAD.size:
            kind, number, size = HEAD.unpack_from(self._unread, begin)
            end = begin + HEAD.size + size
            if len(self._unread) < end:
                break
            yield kind, number, bytes(self._unread[begin + HEAD.size : end])
            begin = end
        del self._unread[:begin]
