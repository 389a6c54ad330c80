"""What a take brings: each job that can be read, whatever came with it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregating_worker.intake.answer import jobs_in
from aggregating_worker.request import Unreadable

UNREADABLE = {
    "a long number": '{"id": "bad", "input": {"items": [' + "9" * 5_000 + "]}}",
    "deep": '{"input": {"items": ' + "[" * 50_000 + "]" * 50_000 + '}, "id": "bad"}',
    "no UTF-8": '{"id": "bad", "input": {"items": ["\udcff"]}}',
    "no JSON": '{"id": "bad", "input": {"items": [nix]}}',
}
texts = st.text() | st.sampled_from(['"', "\\", '\\"', "{", "]", ",", ':"id":"other",', '"}, {"id": "other"'])
values = st.recursive(
    texts | st.none() | st.booleans() | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
jobs = st.fixed_dictionaries({"id": st.just("good"), "input": values}, optional={"webhook": texts})


@given(st.lists(jobs, max_size=4), st.sampled_from([*UNREADABLE]), st.booleans(), st.integers(0, 4))
def test_a_job_that_cannot_be_read_costs_no_other(
    readable: list[dict[str, Any]], unreadable: str, ascii_only: bool, place: int
) -> None:
    elements = [json.dumps(job, ensure_ascii=ascii_only) for job in readable]
    elements.insert(place, UNREADABLE[unreadable])
    found = jobs_in(f"[{', '.join(elements)}]".encode("utf-8", "surrogateescape"))
    [bad] = [job for job in found if job["id"] == "bad"]
    assert isinstance(bad["input"], Unreadable)
    assert [job for job in found if job is not bad] == readable
    assert found.index(bad) == min(place, len(readable))


@pytest.mark.parametrize("unreadable", UNREADABLE.values(), ids=UNREADABLE)
def test_the_only_job_of_an_answer_is_told_apart_too(unreadable: str) -> None:
    job = jobs_in(unreadable.encode("utf-8", "surrogateescape"))
    assert (job["id"], type(job["input"])) == ("bad", Unreadable)


def test_what_cannot_be_read_and_has_no_id_is_none_and_costs_no_other() -> None:
    assert jobs_in(b'[{"id": "1", "input": 2}, {nix}, {"id": "3", "input": 4}]')[::2] == [
        {"id": "1", "input": 2},
        {"id": "3", "input": 4},
    ]


def test_a_text_without_an_end_is_read_once() -> None:
    """To look for another text at each of its quotes would take hours."""
    [job] = jobs_in(b'[{"id": "1", "input": "' + b'\\"' * 1_000_000)
    assert (job["id"], type(job["input"])) == ("1", Unreadable)


@given(st.binary(max_size=40) | texts.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_what_is_no_answer_is_a_value_error_or_json(answer: bytes) -> None:
    try:
        jobs_in(answer)
    except ValueError:
        return
