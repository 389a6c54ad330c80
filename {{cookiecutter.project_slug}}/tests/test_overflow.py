"""The final body stays within its limit, in exact bytes, whatever the results are."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.outcome.bucket import Access, Bucket
from worker.outcome.overflow import Output
from worker.refusal import Refused
from worker.outcome.result import failure, reference, success


@given(
    sizes=st.lists(st.integers(0, 2_000), min_size=1, max_size=60),
    limit=st.integers(1_000, 60_000),
    chunk=st.integers(1, 5),
    order=st.randoms(use_true_random=False),
)
def test_the_body_never_exceeds_the_limit(sizes: list[int], limit: int, chunk: int, order: object) -> None:
    try:
        output = Output("job", len(sizes), limit, chunked=chunk > 1)
    except Refused:
        assert limit < 300 * len(sizes)
        return
    settled = list(enumerate(sizes))
    order.shuffle(settled)  # type: ignore[attr-defined]  # a random.Random; calls end in any order
    made = {
        index: output.admit(success(index, "é" * size) if size % 3 else failure(index, "E", "\x00" * size)).body
        for index, size in settled
    }
    ordered = [made[index] for index in range(len(sizes))]
    assert [envelope["index"] for envelope in ordered] == list(range(len(sizes)))
    chunks = ordered if chunk == 1 else [ordered[first : first + chunk] for first in range(0, len(ordered), chunk)]
    body = json.dumps({"output": chunks}, ensure_ascii=False).encode()
    assert len(body) <= limit
    assert len(body) <= output.size <= limit


BUCKET = Bucket(
    Access.model_validate({"endpointUrl": "https://localhost", "accessId": "a", "accessSecret": "b", "bucketName": "c"})
)


@given(
    sizes=st.lists(st.integers(0, 4_000), min_size=1, max_size=60),
    limit=st.integers(1_000, 60_000),
    order=st.randoms(use_true_random=False),
    expired=st.sets(st.integers(0, 59)),
)
def test_with_a_bucket_too_whatever_is_stored_fails_or_expires(
    sizes: list[int], limit: int, order: object, expired: set[int]
) -> None:
    try:
        output = Output("job", len(sizes), limit, bucket=BUCKET)
    except Refused:
        assert limit < 300 * len(sizes)
        return
    url = "x" * BUCKET.url_bytes(f"job/{len(sizes)}.json")
    settled = list(enumerate(sizes))
    order.shuffle(settled)  # type: ignore[attr-defined]
    made = {}
    for index, size in settled:
        envelope = success(index, "é" * size)
        if output.overflow(envelope):
            envelope = reference(index, url, 2 * size) if size % 3 else failure(index, "NotStored", "no")
        made[index] = output.admit(failure(index, "TimeoutError", "late") if index in expired else envelope).body
    body = json.dumps({"output": [made[index] for index in range(len(sizes))]}, ensure_ascii=False).encode()
    assert len(body) <= output.size <= limit
    if limit >= 400 * len(sizes) + 20:
        assert "OutputTooLarge" not in body.decode()


def test_what_fits_is_never_replaced() -> None:
    output = Output("job", 3, 10_000)
    envelopes = [success(index, "x" * 3_000) for index in range(3)]
    assert [output.admit(envelope) for envelope in envelopes] == envelopes


def test_what_does_not_fit_is_named() -> None:
    output = Output("job", 2, 1_000)
    assert output.admit(success(0, "x" * 2_000)).body["failure"]["type"] == "OutputTooLarge"
    assert output.admit(success(1, "small")).success


def test_a_job_of_very_many_small_results_fits() -> None:
    output = Output("job", 100_000, 10_000_000)
    assert all(output.admit(success(index, index)).success for index in range(100_000))
    assert output.size <= 10_000_000


def test_a_limit_too_small_for_the_items_is_refused_before_any_work() -> None:
    with pytest.raises(Refused, match="send fewer items"):
        Output("job", 100, 1_000)
