"""An envelope is what the SDK will send, to the byte."""

import cmath
import dataclasses
import enum
import json
from collections import deque
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, field_serializer

from aggregating_worker.failed import ItemFailed
from aggregating_worker.outcome.plain import NO_FORM, RETURNABLE
from aggregating_worker.outcome.result import (
    WITH_FILE,
    Raised,
    Unsendable,
    describe,
    failure,
    is_error,
    returned_error,
)
from aggregating_worker.refusal import Refused
from tests.engine import success
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


class Scores(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    of: Any


class Embedding(BaseModel):
    of: list[float]


class Signal(BaseModel):
    """It has a form for what JSON has none for."""

    value: complex

    @field_serializer("value")
    def _parts(self, value: complex) -> list[float]:
        return [value.real, value.imag]


class Odd(enum.Enum):
    KEY = float("nan")


@dataclasses.dataclass
class Row:
    cells: Any


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({1: "a", "1": "b"}, 'result has two keys that are the text "1" in JSON.'),
        ({"a": 0, 1: "a", "b": 0, "1": "b"}, 'result has two keys that are the text "1" in JSON.'),
        ({True: 1, "true": 2}, 'result has two keys that are the text "true" in JSON.'),
        ({"x": [{None: 1, "None": 2}]}, 'result.x[0] has two keys that are the text "None" in JSON.'),
        ({np.int64(1): 1, 1: 2, "1": 3}, 'result has two keys that are the text "1" in JSON.'),
        (Scores(of={1: "a", "1": "b"}), 'result.of has two keys that are the text "1" in JSON.'),
        ({"embedding": [0.1, float("nan")]}, f"result.embedding[1] is NaN, {NO_FORM}."),
        ({"a b": {"x": np.array([[1, -np.inf]], "float32")}}, f'result["a b"].x[0][1] is -Infinity, {NO_FORM}.'),
        (np.float32("inf"), f"result is Infinity, {NO_FORM}."),
        (Embedding(of=[0.1, float("nan")]), f"result.of[1] is NaN, {NO_FORM}."),
        (Row([Row(float("nan"))]), f"result.cells[0].cells is NaN, {NO_FORM}."),
        (Row(np.float32("-inf")), f"result.cells is -Infinity, {NO_FORM}."),
        ({float("nan"): 1}, f"result has the key nan, {NO_FORM}."),
        ({"x": {Decimal("Infinity"): 1}}, f"result.x has the key Infinity, {NO_FORM}."),
        (Decimal("NaN"), f"result is NaN, {NO_FORM}."),
        ([Scores(of=Decimal("sNaN"))], f"result[0].of is sNaN, {NO_FORM}."),
        (complex(1, 2), f"result is a complex number, {NO_FORM}."),
        ({"z": np.array([1, 1j])}, f"result.z[0] is a complex number, {NO_FORM}."),
        (np.array([np.clongdouble(1j)]), f"result[0] is a complex number, {NO_FORM}."),
        ({Odd.KEY: 1}, f"result has the key nan, {NO_FORM}."),
        ({(1, float("nan")): 1}, f"result has the key nan, {NO_FORM}."),
        ({"x": (value for value in [0.5, float("nan")])}, f"result.x[1] is NaN, {NO_FORM}."),
        (np.datetime64("NaT"), f"result is NaT, {NO_FORM}."),
        (np.array(["2026-01-02", "NaT"], "datetime64[ns]"), f"result[1] is NaT, {NO_FORM}."),
        ([1, {"x": object()}], f"result[1].x: object {RETURNABLE}."),
        ({"x": ["a", "\ud800"]}, "result.x[1] has half of a surrogate pair, which UTF-8 cannot carry."),
    ],
)
def test_what_json_has_no_form_for_is_a_failure_that_says_what_and_where(value: Any, why: str) -> None:
    with pytest.raises(Unsendable) as caught:
        success(0, value)
    assert str(caught.value) == why
    if NO_FORM in why or "two keys" in why:
        assert caught.value.kind == "ValueError"


@pytest.mark.parametrize(
    "given", [(3, "ns"), (1, ("ns", 3)), (3, "M"), (3, "Y"), (3,), (2**62, "s"), (10**12, "D"), (10**17, "h")], ids=str
)
def test_a_duration_of_no_known_length_is_refused_by_its_type(given: Any) -> None:
    with pytest.raises(Unsendable, match="timedelta64"):
        success(0, [np.timedelta64(*given)])


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_a_time_is_the_same_in_every_unit(unit: str) -> None:
    moment = np.datetime64("2026-01-02T03:04:05").astype(f"datetime64[{unit}]")
    duration = np.timedelta64(90, "s").astype(f"timedelta64[{unit}]")
    value = {"at": moment, "for": duration, "both": [np.array([moment]), np.array([duration])]}
    assert success(0, value).body["result"] == {
        "at": "2026-01-02T03:04:05",
        "for": "PT1M30S",
        "both": [["2026-01-02T03:04:05"], ["PT1M30S"]],
    }


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (np.datetime64("2026-01-02"), "2026-01-02"),
        (np.datetime64("2026-03"), "2026-03-01"),
        (np.datetime64("2026-01-02T00:00:00.000000001"), "2026-01-02T00:00:00.000000001"),
        (np.datetime64("20000-01-01"), "20000-01-01"),
        ({np.int64(1): np.bool_(True), np.float64(0.5): 1, None: 2}, {"1": True, "0.5": 1, "None": 2}),
        (Signal(value=1j), {"value": [0.0, 1.0]}),
        (Decimal("1.50"), "1.50"),
        (np.longdouble(0.5), 0.5),
        (
            np.array([(1, "a", "2026-01-02")], [("n", "i4"), ("s", "U1"), ("t", "M8[ns]")]),
            [[1, "a", "2026-01-02T00:00:00"]],
        ),
        (np.array([Row(1), None], dtype=object), [{"cells": 1}, None]),
        (np.datetime64(10**12, "s"), "33658-09-27T01:46:40"),
        ({"x": ({1: each} for each in [2])}, {"x": [{"1": 2}]}),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (MappingProxyType({1: deque([np.int8(2)])}), {"1": [2]}),
    ],
)
def test_what_json_has_a_form_for_is_kept(value: Any, sent: Any) -> None:
    assert success(0, value).body["result"] == sent


@given(st.lists(st.floats() | st.just(1j), min_size=1, max_size=50))
def test_the_first_of_several_is_named(values: list[Any]) -> None:
    bad = [place for place, value in enumerate(values) if not cmath.isfinite(value) or value == 1j]
    assume(bad)
    with pytest.raises(Unsendable) as caught:
        success(0, {"x": values})
    assert str(caught.value).startswith(f"result.x[{bad[0]}] is ")


@pytest.mark.parametrize(
    ("returned", "failure"),
    [
        ({"error": "model failed"}, {"message": "model failed"}),
        ({"error": ["a", 1], "at": 3}, {"message": '["a", 1]', "details": {"at": 3}}),
        ({"error": {"code": 7}}, {"message": '{"code": 7}'}),
        ({"error": {"code": b"7"}}, {"message": WITH_FILE}),
        ({"error": "no", "file": b"x"}, {"message": "no", "details": WITH_FILE}),
        ({"error": "no", "n": float("nan")}, {"message": "no", "details": f"The details.n is NaN, {NO_FORM}."}),
    ],
)
def test_an_error_as_plain_handlers_return_it_is_a_failure(returned: Any, failure: Any) -> None:
    assert is_error(returned)
    assert returned_error(0, returned).body["failure"] == {"type": "Error", **failure}


def test_an_error_that_cannot_be_sent_says_so() -> None:
    with pytest.raises(Unsendable, match=r"^error\[1\] is NaN"):
        returned_error(0, {"error": ["no", float("nan")]})


@pytest.mark.parametrize(
    "returned", [{"error": 0.03}, {"error": ""}, {"error": None}, {"error": []}, {}, "error", None]
)
def test_another_value_under_error_is_a_result(returned: Any) -> None:
    assert not is_error(returned)


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


@pytest.mark.parametrize(
    ("error", "broken"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "CUDA"),
        (RuntimeError("no CUDA error"), ""),
        (ValueError("CUDA error"), ""),
        (ItemFailed("no", restart=True), "restart"),
        (ItemFailed("CUDA error"), ""),
    ],
)
def test_what_breaks_a_process_is_told_by_the_exception(error: Exception, broken: str) -> None:
    assert describe(error).broken == describe(ExceptionGroup("one", [error])).broken == broken
    assert describe(error).deliberate == isinstance(error, ItemFailed)


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
        go_on(depth)
    raise ValueError("bottom")


def go_on(depth: int) -> None:
    recurse(depth - 1)


def test_a_recursion_is_cut_to_its_innermost_frames() -> None:
    """Also one of frames that differ, of which Python does not leave out those that are alike."""
    with pytest.raises(ValueError, match="bottom") as caught:
        recurse(200)
    assert len(describe(caught.value).trace.splitlines()) < 100


def test_a_sentence_for_the_workers_owner_is_kept_without_a_trace() -> None:
    assert describe(Refused("Set BUCKET_NAME.")) == Raised("Refused", "Set BUCKET_NAME.", "")
