"""An envelope is what the SDK will send, to the byte."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregating_worker.outcome.result import describe, failure, success
from tests.tasks.hostile import FAULTY, FINE

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


def sdk_encoding(body: Any) -> bytes:
    """Return what ``rp_http._handle_result`` (runpod 1.12.0) sends, as aiohttp encodes it."""
    return json.dumps(body, ensure_ascii=False).encode("utf-8")


@given(st.integers(0, 10**6), json_values)
def test_a_json_value_is_kept_and_measured_exactly(index: int, value: Any) -> None:
    outcome = success(index, value)
    assert outcome.body == {"index": index, "success": True, "result": value}
    assert outcome.size == len(sdk_encoding(outcome.body))


@given(st.text(st.characters(exclude_categories=())), st.text(st.characters(exclude_categories=())))
def test_a_failure_can_always_be_sent(kind: str, message: str) -> None:
    """Lone surrogates are among the characters."""
    outcome = failure(7, kind, message)
    assert outcome.size == len(sdk_encoding(outcome.body))
    assert len(outcome.body["failure"]["message"]) <= 500


@pytest.mark.parametrize("name", [name for name in FINE if name != "binary"])  # it is a file
def test_what_a_person_returns_becomes_json(name: str) -> None:
    make, expected = FINE[name]
    assert success(0, make()).body["result"] == expected


@pytest.mark.parametrize("name", FAULTY)
def test_what_cannot_be_sent_is_a_failure_of_its_kind(name: str) -> None:
    make, kinds = FAULTY[name]
    with pytest.raises(BaseException) as caught:
        success(0, make())
    outcome = describe(caught.value).outcome(0)
    assert outcome.body["failure"]["type"] in kinds
    assert outcome.size == len(sdk_encoding(outcome.body))


def test_a_result_changed_later_stays_what_it_was() -> None:
    shared = {"count": [1]}
    outcome = success(0, shared)
    shared["count"].append(2)
    assert outcome.body["result"] == {"count": [1]}


def test_of_a_group_the_exceptions_in_it_are_named() -> None:
    inner = ExceptionGroup("inner", [TypeError("b")])
    raised = describe(ExceptionGroup("outer", [ValueError("a"), inner]))
    assert (raised.kind, raised.message) == ("ExceptionGroup", "ValueError: a; TypeError: b")
    assert (describe(inner).kind, describe(inner).message) == ("TypeError", "b")


def test_a_deep_or_long_exception_is_described_in_bounds() -> None:
    """An exception raised for item after item, and one at the end of a long chain, once held up the event loop."""
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
