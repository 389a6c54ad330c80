"""What the worker and a process say to each other arrives whole, however it is cut; nothing that comes out is run."""

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregating_worker.process.wire import Frame, Frames, Say, frame, outcome, read_outcome
from tests.conftest import LIBRARY

INSIDE = "process/run.py"
"""Runs in the process of the task, which trusts the worker."""

frames = st.lists(st.tuples(st.sampled_from(Say), st.integers(0, 2**32 - 1), st.binary(max_size=300)), max_size=8)


@given(given=frames, cut=st.integers(1, 50))
def test_frames_are_read_as_they_were_written(given: list[tuple[int, int, bytes]], cut: int) -> None:
    sent = b"".join(frame(kind, number, payload) for kind, number, payload in given)
    reading = Frames(Say)
    pieces = [sent[begin : begin + cut] for begin in range(0, len(sent), cut)]
    assert [each for piece in pieces for each in reading.feed(piece)] == given


@given(
    place=st.integers(0, 9_999),
    flags=st.integers(0, 15),
    pieces=st.lists(st.binary(max_size=50), min_size=1, max_size=7),
)
def test_an_outcome_is_read_as_it_was_written(place: int, flags: int, pieces: list[bytes]) -> None:
    [(kind, number, payload)] = Frames(Say).feed(outcome(7, place, flags, pieces))
    assert (kind, number) == (Say.MADE, 7)
    assert read_outcome(payload) == (place, flags, pieces)


@given(text=st.text(min_size=10).map(str.encode), before=st.integers(0, 1))
def test_a_text_among_the_frames_is_told_apart_at_once(text: bytes, before: int) -> None:
    reading, heard = Frames(Say), list[Frame]()
    with pytest.raises(ValueError, match="no frame begins with"):
        heard.extend(reading.feed(frame(Say.PONG, 1) * before + text))
    assert heard == [(Say.PONG, 1, b"")] * before


@given(harm=st.integers(1, 9), cut=st.booleans())
def test_an_outcome_is_as_long_as_it_says(harm: int, cut: bool) -> None:
    [(_, _, payload)] = Frames(Say).feed(outcome(7, 0, 0, [b"0123456789", b"01234567890"]))
    with pytest.raises(ValueError, match="not as long as it says"):
        read_outcome(payload[:-harm] if cut else payload + b"." * harm)


def test_nothing_is_unpickled_from_a_process() -> None:
    source = LIBRARY / "src" / "aggregating_worker"
    loading = [
        str(file.relative_to(source))
        for file in source.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("loads", "load", "Unpickler")
        if isinstance(node.value, ast.Name) and node.value.id == "pickle"
    ]
    assert {*loading} == {INSIDE}
