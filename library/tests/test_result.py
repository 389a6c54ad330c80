"""An envelope is what the SDK will send, to the byte."""

import json
from typing import Any

import pytest
from aggregating_worker.outcome.result import describe, failure, success
from hypothesis import given
from hypothesis import strategies as st

from tests.tasks.hostile import FAULTY, FINE

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


def sdk_encoding(body: Any) -> bytes:
    """What ``rp_http._handle_result`` (runpod 1.12.0) sends, as aiohttp encodes it."""
    return json.dumps(body, ensure_ascii=False).encode("utf-8")


@given(st.integers(0, 10**6), json_values)
def test_a_json_value_is_kept_and_measured_exactly(index: int, value: Any) -> None:
    envelope = success(index, value)
    assert envelope.body == {"index": index, "success": True, "result": value}
    assert envelope.size == len(sdk_encoding(envelope.body))


@given(st.text(st.characters(exclude_categories=())), st.text(st.characters(exclude_categories=())))
def test_a_failure_can_always_be_sent(kind: str, message: str) -> None:
    """Categories are not excluded: lone surrogates are in."""
    envelope = failure(7, kind, message)
    assert envelope.size == len(sdk_encoding(envelope.body))
    assert len(envelope.body["failure"]["message"]) <= 500


@pytest.mark.parametrize("name", [name for name in FINE if name != "binary"])  # which is a file
def test_what_a_person_returns_becomes_json(name: str) -> None:
    make, expected = FINE[name]
    assert success(0, make()).body["result"] == expected


@pytest.mark.parametrize("name", FAULTY)
def test_what_cannot_be_sent_is_a_failure_of_its_kind(name: str) -> None:
    make, kinds = FAULTY[name]
    with pytest.raises(BaseException) as caught:
        success(0, make())
    envelope = describe(caught.value).envelope(0)
    assert envelope.body["failure"]["type"] in kinds
    assert envelope.size == len(sdk_encoding(envelope.body))


def test_a_result_changed_later_stays_what_it_was() -> None:
    shared = {"count": [1]}
    envelope = success(0, shared)
    shared["count"].append(2)
    assert envelope.body["result"] == {"count": [1]}


@pytest.mark.parametrize("kind", [BaseExceptionGroup, property(lambda _: 1 / 0)])
def test_an_exception_that_lies_about_its_class_is_described(kind: Any) -> None:
    error = type("Liar", (Exception,), {"__class__": kind})("what it says")
    assert (describe(error).kind, describe(error).message) == ("Liar", "what it says")


def test_a_deep_or_long_exception_is_described_in_bounds() -> None:
    """One exception raised for item after item, and one at the end of a long chain, once held the event loop up."""
    shared = ValueError("again")
    for _ in range(3):
        try:
            raise shared
        except ValueError as error:
            assert describe(error).trace.count("raise shared") == 1
    chain: BaseException = ValueError("0")
    for number in range(3_000):
        chain, chain.__cause__ = ValueError(str(number)), chain
    link = ValueError("end")
    link.__cause__ = chain
    raised = describe(link)
    assert raised.trace.count("which led to") == 3
    assert raised.trace.endswith("ValueError: end")


def recurse(depth: int) -> None:
    if depth:
        recurse(depth - 1)
    raise ValueError("bottom")


def test_a_recursion_is_cut_to_its_innermost_frames() -> None:
    with pytest.raises(ValueError, match="bottom") as caught:
        recurse(500)
    assert len(describe(caught.value).trace.splitlines()) < 100
