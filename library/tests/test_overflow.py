"""The final body stays within its limit, in exact bytes, whatever the results are."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregating_worker.delivery.chunk import Chunk
from aggregating_worker.delivery.sender import _final
from aggregating_worker.outcome.bucket import Access, Bucket, NotStored
from aggregating_worker.outcome.overflow import Output
from aggregating_worker.outcome.result import Outcome, failure, reference, success
from aggregating_worker.refusal import Refused

ACCESS = {"endpointUrl": "https://localhost", "accessId": "a", "accessSecret": "b", "bucketName": "c"}


@dataclass(frozen=True)
class Shelf(Bucket):
    """A bucket without a store: each result gets the longest URL that there can be."""

    fails: bool = False

    def store(self, key: str, body: bytes, content_type: str = "application/json", name: str = "") -> str:
        if self.fails:
            raise NotStored(f"{name}, {content_type} of {len(body)} bytes could not be stored: " + "x" * 400)
        return "x" * self.url_bytes(key)


def shelf(*, fails: bool = False) -> Shelf:
    return Shelf(Access.model_validate(ACCESS), fails=fails)


def admitted(output: Output, outcome: Outcome) -> Outcome:
    """Return what goes inline, stored first if it has to be."""
    taken = output.admit(outcome)
    return taken if isinstance(taken, Outcome) else taken()


def sent(outcomes: list[Outcome], chunk: int = 1) -> bytes:
    bodies = [outcome.body for outcome in outcomes]
    chunks: list[Any] = bodies
    if chunk > 1:
        chunks = [bodies[first : first + chunk] for first in range(0, len(bodies), chunk)]
    return json.dumps({"output": chunks}, ensure_ascii=False).encode()


@given(
    sizes=st.lists(st.integers(0, 4_000), min_size=1, max_size=60),
    limit=st.integers(1_000, 60_000),
    chunk=st.integers(1, 5),
    bucket=st.sampled_from([None, shelf(), shelf(fails=True)]),
    first=st.sampled_from([0, 995]),
)
def test_the_body_never_exceeds_the_limit(
    sizes: list[int], limit: int, chunk: int, bucket: Shelf | None, first: int
) -> None:
    try:
        output = Output("job", len(sizes), limit, first_index=first, chunked=chunk > 1, bucket=bucket)
    except Refused:
        assert limit < 300 * len(sizes)
        return
    outcomes = [
        admitted(output, success(index, "é" * size) if size % 3 else failure(index, "E", "\x00" * size))
        for index, size in enumerate(sizes, first)
    ]
    assert [outcome.index for outcome in outcomes] == list(range(first, first + len(sizes)))
    body = sent(outcomes, chunk)
    assert len(body) <= output.size <= limit
    if bucket and not bucket.fails and limit >= 500 * len(sizes) + 20:
        for size, outcome in zip(sizes, outcomes, strict=True):
            assert outcome.success == bool(size % 3)


@given(sizes=st.lists(st.integers(0, 3_000), min_size=1, max_size=30), more=st.integers(0, 2_000))
def test_what_can_stay_inline_does_and_a_reference_has_room_to_the_last_byte(sizes: list[int], more: int) -> None:
    """The limit is what the references need, or a little more: no item becomes a failure."""
    bucket = shelf()
    longest = reference(len(sizes), "x" * bucket.url_bytes(f"job/{len(sizes)}.json"), 10**15).size
    limit = max(1_000, len('{"output": [], "stopPod": true}') + len(sizes) * (longest + 2) + more)
    output = Output("job", len(sizes), limit, bucket=bucket)
    outcomes = [admitted(output, success(index, "x" * size)) for index, size in enumerate(sizes)]
    assert all(outcome.success for outcome in outcomes)
    assert len(sent(outcomes)) <= limit


def test_what_fits_is_never_replaced() -> None:
    output = Output("job", 3, 10_000)
    outcomes = [success(index, "x" * 3_000) for index in range(3)]
    assert [output.admit(outcome) for outcome in outcomes] == outcomes


def test_what_does_not_fit_is_named() -> None:
    output = Output("job", 2, 1_000)
    assert admitted(output, success(0, "x" * 2_000)).body["failure"]["type"] == "OutputTooLarge"
    assert admitted(output, success(1, "small")).success


def test_a_job_of_very_many_small_results_fits() -> None:
    output = Output("job", 100_000, 10_000_000)
    assert all(admitted(output, success(index, index)).success for index in range(100_000))
    assert output.size <= 10_000_000


def test_a_limit_too_small_for_the_items_is_refused_before_any_work() -> None:
    with pytest.raises(Refused, match="send fewer items"):
        Output("job", 100, 1_000)


def test_a_body_that_asks_for_a_new_worker_too_is_within_the_limit() -> None:
    for size in range(800, 1_000):
        output = Output("job", 1, 1_000)
        chunk = Chunk([admitted(output, success(0, "x" * size))], output, listed=False)
        assert len(_final([chunk], {"stopPod": True})) <= 1_000
