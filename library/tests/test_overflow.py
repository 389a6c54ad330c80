"""The final body stays within its limit, in exact bytes, whatever the results are."""

import json
import re
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregating_worker.delivery.chunk import Chunk, final_body
from aggregating_worker.outcome.bucket import Access, Bucket, NotStored
from aggregating_worker.outcome.files import Unencoded
from aggregating_worker.outcome.overflow import BODY, CHUNK_BYTES, STOP_POD, Output
from aggregating_worker.outcome.result import Outcome, failure, reference, seal, with_files
from aggregating_worker.refusal import Refused
from tests.engine import success

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


def sent(output: Output, outcomes: list[Outcome], chunk: int = 1) -> bytes:
    """Return the final body."""
    parts = [outcomes[first : first + chunk] for first in range(0, len(outcomes), chunk)]
    rest = {"stopPod": True} if output.refresh_worker else {}
    return b"".join(final_body([Chunk(part, output, listed=chunk > 1) for part in parts], rest))


@given(
    sizes=st.lists(st.integers(0, 4_000), min_size=1, max_size=60),
    limit=st.integers(1_000, 60_000),
    chunk=st.integers(1, 5),
    bucket=st.sampled_from([None, shelf(), shelf(fails=True)]),
    first=st.sampled_from([0, 995]),
    asking=st.none() | st.integers(0, 59),
)
def test_the_body_never_exceeds_the_limit(
    sizes: list[int], limit: int, chunk: int, bucket: Shelf | None, first: int, asking: int | None
) -> None:
    """Also if an item asks for a new worker when room has been given to others."""
    try:
        output = Output("job", len(sizes), limit, first_index=first, chunked=chunk > 1, bucket=bucket)
    except Refused:
        assert limit < 300 * len(sizes)
        return
    outcomes = []
    for index, size in enumerate(sizes, first):
        output.refresh_worker |= index - first == asking
        made = success(index, "é" * size) if size % 3 else failure(index, "E", "\x00" * size)
        outcomes.append(admitted(output, made))
    assert [outcome.index for outcome in outcomes] == list(range(first, first + len(sizes)))
    body = sent(output, outcomes, chunk)
    assert len(body) <= limit
    assert chunk > 1 or bucket or len(body) - STOP_POD * output.refresh_worker == output.size
    bodies = [outcome.body for outcome in outcomes]
    listed: list[Any] = (
        [bodies[first : first + chunk] for first in range(0, len(bodies), chunk)] if chunk > 1 else bodies
    )
    by_sdk = {"output": listed, **({"stopPod": True} if output.refresh_worker else {})}
    assert json.dumps(by_sdk, ensure_ascii=False).encode() == body
    if bucket and not bucket.fails and limit >= 500 * len(sizes) + 20:
        for size, outcome in zip(sizes, outcomes, strict=True):
            assert outcome.success == bool(size % 3)


@given(sizes=st.lists(st.integers(0, 3_000), min_size=1, max_size=30), more=st.integers(0, 2_000))
def test_what_can_stay_inline_does_and_a_reference_has_room_to_the_last_byte(sizes: list[int], more: int) -> None:
    """The limit is what the references need, or a little more: no item becomes a failure."""
    bucket = shelf()
    longest = reference(len(sizes), "x" * bucket.url_bytes(f"job/{len(sizes)}.json"), 10**15).size
    limit = max(1_000, BODY + STOP_POD + len(sizes) * (longest + 2) + more)
    output = Output("job", len(sizes), limit, bucket=bucket)
    outcomes = [admitted(output, success(index, "x" * size)) for index, size in enumerate(sizes)]
    assert all(outcome.success for outcome in outcomes)
    assert len(sent(output, outcomes)) <= limit


def test_what_fits_is_never_replaced() -> None:
    output = Output("job", 3, 10_000)
    outcomes = [success(index, "x" * 3_000) for index in range(3)]
    assert [output.admit(outcome) for outcome in outcomes] == outcomes


@given(
    off=st.integers(-20, 20),
    shape=st.sampled_from(["list", "lists", "bare"]),
    asking=st.booleans(),
    index=st.sampled_from([0, 7, 12_345]),
)
def test_what_fits_exactly_fits(off: int, shape: str, asking: bool, index: int) -> None:
    def output(limit: int) -> Output:
        of_one = Output("job", 1, limit, first_index=index, chunked=shape == "lists", bare=shape == "bare")
        of_one.refresh_worker = asking
        return of_one

    made = success(index, "x" * 3_000)
    size = len(sent(output(10_000), [made], 2 if shape == "lists" else 1))
    assert (output(size + off).admit(made) is made) == (off >= 0)


@given(sizes=st.lists(st.integers(300, 600), min_size=2, max_size=9), spare=st.integers(-1, 0))
def test_a_list_that_fits_exactly_fits(sizes: list[int], spare: int) -> None:
    """Each of its results is as long as a failure in its place: no room has to be kept."""
    made = [success(index, "x" * size) for index, size in enumerate(sizes)]
    limit = max(1_000, len(json.dumps({"output": [outcome.body for outcome in made]})) + spare)
    output = Output("job", len(sizes), limit)
    kept = [output.admit(outcome) is outcome for outcome in made]
    assert kept[:-1] == [True] * (len(sizes) - 1)
    assert kept[-1] == (len(sent(output, made)) <= limit)


@pytest.mark.parametrize(
    ("items", "size", "says"),
    [
        (1, 2_000, "2,002 bytes, too many for a response of 1,000: return less"),
        (2, 2_000, "2,002 bytes, too many for a response of 1,000: return less"),
        (3, 600, "602 bytes, too many for what is left of a response of 1,000: send fewer items per job"),
    ],
)
def test_what_does_not_fit_says_its_size_the_limit_and_what_helps(items: int, size: int, says: str) -> None:
    output = Output("job", items, 1_000)
    failed = admitted(output, success(0, "x" * size)).body["failure"]
    message = f"The result has {says}, or give the worker a bucket."
    assert failed == {"type": "OutputTooLarge", "message": message}
    assert all(admitted(output, success(index, "small")).success for index in range(1, items))


def test_a_failure_that_does_not_fit_says_so_and_a_bucket_would_not_help() -> None:
    failed = admitted(Output("job", 1, 1_000), failure(0, "E", "", {"x": "y" * 1_000})).body["failure"]
    assert failed["type"] == "OutputTooLarge"
    assert re.fullmatch(
        r"The failure has 1,\d{3} bytes, too many for a response of 1,000: return less.", failed["message"]
    )


def test_what_fits_into_a_chunk_to_the_byte_stays_inline_and_what_does_not_is_stored() -> None:
    around = success(0, "").size
    for more in (0, 1):
        outcome = success(0, "x" * (CHUNK_BYTES - around + more))
        assert admitted(Output("job", 1, 9_000_000, bucket=shelf()), outcome).stored == bool(more)
        assert not admitted(Output("job", 1, 9_000_000), outcome).stored


def test_what_the_platform_refuses_says_so() -> None:
    for items, helps in ((1, "return less"), (2, "send fewer items per job")):
        output = Output("job", items, 20_000)
        outcomes = [admitted(output, success(index, "x" * 5_000)) for index in range(items)]
        [first, *_] = output.shrink(outcomes, 1) or []
        refused = f"and the platform refused a response of {len(sent(output, outcomes)):,}"
        message = f"The result has 5,002 bytes, {refused}: {helps}, or give the worker a bucket."
        assert first.body["failure"] == {"type": "OutputTooLarge", "message": message}


@dataclass(frozen=True)
class Noted(Shelf):
    """Notes what it is given."""

    keys: list[str] = field(default_factory=list)

    def store(self, key: str, body: bytes, content_type: str = "application/json", name: str = "") -> str:
        self.keys.append(f"{key} {body[:2].decode()} {len(body)} {name or content_type}")
        return super().store(key, body, content_type, name)


def test_what_the_platform_refuses_is_stored_the_largest_first_until_enough_is_saved() -> None:
    bucket = Noted(Access.model_validate(ACCESS))
    output = Output("job", 5, 1_000_000, bucket=bucket)
    outcomes = [admitted(output, success(index, "x" * size)) for index, size in enumerate((3_000, 10, 5_000, 4_000))]
    outcomes.append(admitted(output, failure(4, "E", "", {"x": "y" * 9_000})))
    smaller = output.shrink(outcomes, 6_000) or []
    assert bucket.keys == ['job/2.json "x 5002 application/json', 'job/3.json "x 4002 application/json']
    assert [place for place in range(5) if smaller[place] is not outcomes[place]] == [2, 3]
    assert [(each.stored, each.body["bytes"]) for each in smaller[2:4]] == [(True, 5_002), (True, 4_002)]
    assert output.shrink([outcomes[1], outcomes[4]], 1) is None


def test_a_bucket_that_fails_then_saves_as_much_as_it_can(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output("job", 1, 1_000_000, bucket=shelf(fails=True))
    [long] = output.shrink([success(0, "x" * 5_000)], 1) or []
    assert long.body["failure"]["message"].startswith(", application/json of 5002 bytes could not be stored: xxx")
    [short] = output.shrink([success(0, "x" * 470)], 1) or []
    assert short.body["failure"] == {"type": "NotStored", "message": ""}
    assert capsys.readouterr().out.count("| job | Item 0: , application/json of ") == 2


def test_files_are_stored_from_a_size_on_by_the_job_and_the_items_number() -> None:
    bucket = Noted(Access.model_validate(ACCESS))
    output = Output("job", 9, 1_000_000, bucket=bucket, inline_file_bytes=10)
    pieces = with_files(cast(Unencoded, seal(7, [b"x" * 10, b"y" * 11])))
    outcome = output.seal(7, pieces)
    inline, stored = outcome.body["result"]
    assert bucket.keys == ["job/7-1.bin yy 11 7-1.bin"]
    assert ("data" in inline, "url" in stored, outcome.stored, outcome.index) == (True, True, True, 7)
    none = Output("job", 9, 1_000_000, inline_file_bytes=10).seal(7, pieces)
    assert all("data" in file for file in none.body["result"])


def test_a_file_that_cannot_be_stored_is_its_items_failure(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output("job", 9, 1_000_000, bucket=shelf(fails=True))
    outcome = output.seal(7, with_files(cast(Unencoded, seal(7, b"x" * 100_001))))
    assert outcome.body["failure"]["type"] == "NotStored"
    assert outcome.body["failure"]["message"].startswith("7-0.bin, application/octet-stream of 100001 bytes")
    assert "| job | Item 7: 7-0.bin, application/octet-stream of 100001 bytes" in capsys.readouterr().out
    assert "data" in output.seal(7, with_files(cast(Unencoded, seal(7, b"x" * 100_000)))).body["result"]


def test_a_job_of_very_many_small_results_fits() -> None:
    output = Output("job", 100_000, 10_000_000)
    assert all(admitted(output, success(index, index)).success for index in range(100_000))
    assert output.size <= 10_000_000


def test_a_limit_too_small_for_the_items_is_refused_before_any_work() -> None:
    with pytest.raises(Refused, match="send fewer items"):
        Output("job", 100, 1_000)


def test_who_asks_for_a_new_worker_too_late_takes_no_room() -> None:
    output = Output("job", 1, 1_000)
    made = success(0, "x" * (1_000 - len(sent(output, [success(0, "")]))))
    assert output.admit(made) is made
    assert len(sent(output, [made])) == 1_000
    output.refresh_worker |= True
    assert len(sent(output, [made])) == 1_000
