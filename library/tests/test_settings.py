"""The environment is read once, and a bad value is a sentence that names its variable."""

from types import ModuleType

import pytest

from aggregating_worker.refusal import Refused
from aggregating_worker.settings import Settings, doubts, read_settings


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def test_the_defaults() -> None:
    assert read_settings().model_dump() == {
        "processes": None,
        "item_concurrency": None,
        "job_concurrency": None,
        "lookahead": 64,
        "batch_size": 32,
        "batch_wait": 0,
        "chunk_size": 1,
        "item_timeout": 0,
        "max_items": 10_000,
        "max_output_bytes": 10_000_000,
        "undelivered_bytes": 200_000_000,
        "inline_file_bytes": 100_000,
        "deliver_for": 300,
        "bucket_endpoint_url": None,
        "bucket_access_key_id": None,
        "bucket_secret_access_key": None,
        "bucket_name": None,
        "bucket_region": None,
        "allow_job_bucket": False,
    }


def test_every_setting_is_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.setenv(name.upper(), "1001")
    monkeypatch.setenv("BUCKET_ENDPOINT_URL", "http://localhost")
    monkeypatch.setenv("ALLOW_JOB_BUCKET", "true")
    unchanged = {name for name, setting in read_settings() if setting == Settings.model_fields[name].default}
    assert not unchanged


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKAHEAD", "")
    assert read_settings().lookahead == 64


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PROCESSES", "-1"),
        ("ITEM_CONCURRENCY", "many"),
        ("JOB_CONCURRENCY", "0"),
        ("LOOKAHEAD", "-1"),
        ("ITEM_TIMEOUT", "nan"),
        ("ITEM_TIMEOUT", "-1"),
        ("BATCH_WAIT", "-1"),
        ("MAX_OUTPUT_BYTES", "10"),
        ("UNDELIVERED_BYTES", "0"),
        ("CHUNK_SIZE", "1.5"),
        ("ALLOW_JOB_BUCKET", "perhaps"),
        ("BUCKET_ENDPOINT_URL", "s3.eu-west-1.amazonaws.com"),
        ("BUCKET_ENDPOINT_URL", "https://key:secret@localhost"),
        ("BUCKET_ENDPOINT_URL", "https://[s3.eu-west-2.amazonaws.com"),
    ],
)
def test_a_bad_value_is_a_sentence_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(Refused, match=rf"^Check the environment: {name} .*\.$"):
        read_settings()


def test_half_a_bucket_is_refused_by_the_names_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKET_ENDPOINT_URL", "https://localhost")
    monkeypatch.setenv("BUCKET_SECRET_ACCESS_KEY", "not for the log")
    with pytest.raises(Refused) as refused:
        read_settings()
    expected = "Check the environment: BUCKET_ACCESS_KEY_ID is missing; BUCKET_NAME is missing."
    assert str(refused.value) == expected


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("PROCESES", "PROCESSES"),
        ("ITEM_CONCURENCY", "ITEM_CONCURRENCY"),
        ("items_concurrency", "ITEM_CONCURRENCY"),
        ("BATCHSIZE", "BATCH_SIZE"),
        ("LOOK_AHEAD", "LOOKAHEAD"),
        ("MAX_ITEM", "MAX_ITEMS"),
        ("BUCKET_ACCESS_KEY", "BUCKET_ACCESS_KEY_ID"),
    ],
)
def test_a_misspelt_variable_is_a_warning_that_names_the_right_one(name: str, meant: str) -> None:
    said = f"there is no setting {name}; did you mean {meant}?"
    assert [*doubts(Settings(), [name])] == [f"Check the environment: {said}"]
    assert [*doubts(Settings(), [], [name])] == [f"Check task.py: {said}"]


@pytest.mark.parametrize(
    "name",
    ["PATH", "RUNPOD_POD_ID", "RUNPOD_REALTIME_CONCURRENCY", "WEB_CONCURRENCY", "AWS_ACCESS_KEY_ID", "MODEL_NAME"]
    + [name.upper() for name in Settings.model_fields]
    + ["item_concurrency"],
)
def test_a_variable_that_is_right_or_somebody_elses_is_none(name: str) -> None:
    assert [*doubts(Settings(), [name])] == []


def test_a_batch_that_never_fills_is_a_warning_that_says_what_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCH_SIZE", "64")
    assert [*doubts(read_settings(), [])] == []
    monkeypatch.setenv("BATCH_SIZE", "65")
    [sentence] = doubts(read_settings(), [])
    assert sentence.startswith("BATCH_SIZE=65 is over LOOKAHEAD=64: one job fills a call with 64 items at most.")


def test_a_job_of_runsync_may_answer_with_twice_as_much() -> None:
    settings = read_settings()
    assert settings.output_limit("0f1e2d-u1") == 10_000_000
    assert settings.output_limit("sync-0f1e2d-u1") == 20_000_000


def test_a_limit_that_is_set_holds_for_every_job(monkeypatch: pytest.MonkeyPatch) -> None:
    def limits(task: ModuleType | None = None) -> set[int]:
        settings = read_settings(task)
        return {settings.output_limit(job_id) for job_id in ("0f1e2d-u1", "sync-0f1e2d-u1")}

    task = ModuleType("task")
    task.MAX_OUTPUT_BYTES = 5_000_000  # type: ignore[attr-defined]
    assert limits(task) == {5_000_000}
    monkeypatch.setenv("MAX_OUTPUT_BYTES", "10000000")
    assert limits(task) == limits() == {10_000_000}


KEYS = {"BUCKET_ACCESS_KEY_ID": "a", "BUCKET_SECRET_ACCESS_KEY": "b"}


def test_the_three_variables_of_an_official_image_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("BUCKET_ENDPOINT_URL", "https://pictures.s3.eu-west-2.amazonaws.com/")
    access = read_settings().access()
    assert access
    assert (access.bucket, access.region) == ("pictures", None)
    monkeypatch.setenv("BUCKET_NAME", "others")
    monkeypatch.setenv("BUCKET_REGION", "eu-home")
    access = read_settings().access()
    assert access
    assert (access.bucket, access.region) == ("others", "eu-home")


@pytest.mark.parametrize("host", ["s3.eu-west-2.amazonaws.com", "192.0.2.1:9000", "localhost", "minio.example:9000"])
def test_a_host_without_a_bucket_asks_for_its_name(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("BUCKET_ENDPOINT_URL", f"https://{host}")
    with pytest.raises(Refused) as refused:
        read_settings()
    assert str(refused.value) == "Check the environment: BUCKET_NAME is missing."


def test_a_region_that_cannot_be_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**KEYS, "BUCKET_NAME": "c", "BUCKET_ENDPOINT_URL": "https://minio.example:9000"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("BUCKET_REGION", "eu/home")
    with pytest.raises(Refused, match="BUCKET_REGION must be a region's name such as eu-west-1"):
        read_settings()
