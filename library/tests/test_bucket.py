"""Results that do not fit the response are stored, on a real S3 server; only those that it refuses are lost."""

import hashlib
import hmac
import json
from collections.abc import Iterator
from functools import reduce
from typing import Any

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from aggregating_worker.outcome.bucket import Access, Bucket
from tests.calling import client
from tests.conftest import Serve

SECRET = "secret/never+to/be=seen"
KEY_ID = "KEYIDNEVERSEENINLOGS"


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, str]]:
    """Serve S3 with one bucket; return the worker's settings for it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "BUCKET_ENDPOINT_URL": f"http://{host}:{port}",
        "BUCKET_ACCESS_KEY_ID": KEY_ID,
        "BUCKET_SECRET_ACCESS_KEY": SECRET,
        "BUCKET_NAME": "results",
    }
    s3(settings).create_bucket(Bucket="results")
    s3(settings).create_bucket(Bucket="of-the-job")
    yield settings
    server.stop()


@pytest.fixture
def dead_store(free_port: int, store: dict[str, str]) -> dict[str, str]:
    return {**store, "BUCKET_ENDPOINT_URL": f"http://127.0.0.1:{free_port}"}


def s3(settings: dict[str, str]) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=settings["BUCKET_ENDPOINT_URL"],
        aws_access_key_id=KEY_ID,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
    )


def at(url: str, name: str) -> Bucket:
    return Bucket(
        Access.model_validate({"endpointUrl": url, "accessId": "a/b", "accessSecret": "c", "bucketName": name})
    )


def keys(settings: dict[str, str], bucket: str) -> set[str]:
    found = s3(settings).list_objects_v2(Bucket=bucket).get("Contents", [])
    return {each["Key"] for each in found}


def read(envelope: dict[str, Any]) -> Any:
    """Return an envelope's result, wherever it is."""
    if "result_url" not in envelope:
        return envelope["result"]
    answer = httpx.get(envelope["result_url"]).raise_for_status()
    assert len(answer.content) == envelope["bytes"]
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def s3_config(settings: dict[str, str], bucket: str) -> dict[str, str]:
    return {
        "accessId": settings["BUCKET_ACCESS_KEY_ID"],
        "accessSecret": settings["BUCKET_SECRET_ACCESS_KEY"],
        "bucketName": bucket,
        "endpointUrl": settings["BUCKET_ENDPOINT_URL"],
    }


@pytest.mark.parametrize(("task", "chunk"), [("hostile", 1), ("hostile_async", 64), ("hostile_batch", 1)])
def test_24_mb_of_results_are_given_to_the_client_and_the_body_is_within_the_limit(
    serve: Serve, store: dict[str, str], task: str, chunk: int
) -> None:
    caller = serve(task, CHUNK_SIZE=str(chunk), BATCH_SIZE="8", **store)
    items = [{"bytes": 400_000}] * 60
    called = client(caller.endpoint.base_url, "runsync", "-", given=json.dumps({"input": {"items": items}}).encode())
    assert called.returncode == 0
    assert [envelope["result"] for envelope in map(json.loads, called.stdout.splitlines())] == ["x" * 400_000] * 60

    job_id = caller.run(items)
    streamed = list(caller.stream(job_id))
    state = caller.status(job_id)
    assert state["output"] == streamed
    assert len(json.dumps({"output": state["output"]}, ensure_ascii=False).encode()) <= 10_000_000
    envelopes = state["output"] if chunk == 1 else [envelope for each in state["output"] for envelope in each]
    assert [envelope["index"] for envelope in envelopes] == list(range(60))
    stored = {f"{job_id}/{envelope['index']}.json" for envelope in envelopes if "result_url" in envelope}
    assert 30 < len(stored) < 60
    assert stored <= keys(store, "results")
    assert f"60 items, 0 failed, {len(stored)} stored" in caller.log.read_text()


def test_a_result_too_large_for_a_chunk_is_stored_whatever_room_there_is(serve: Serve, store: dict[str, str]) -> None:
    [small, large] = serve("hostile", **store).runsync([{"bytes": 900_000}, {"bytes": 1_000_000}])["output"]
    assert "result" in small
    assert read(large) == "x" * 1_000_000


def test_a_failure_is_never_stored(serve: Serve, store: dict[str, str]) -> None:
    caller = serve("hostile", MAX_OUTPUT_BYTES="2000", **store)
    output = caller.runsync(["raise", "raise", {"bytes": 5_000}])["output"]
    assert [envelope["success"] for envelope in output] == [False, False, True]
    assert read(output[2]) == "x" * 5_000


@pytest.mark.parametrize("task", ["hostile", "hostile_async", "hostile_batch"])
def test_with_a_dead_bucket_only_the_items_that_need_it_fail(
    serve: Serve, dead_store: dict[str, str], task: str
) -> None:
    caller = serve(task, ITEM_CONCURRENCY="4", BATCH_SIZE="2", **dead_store)
    output = caller.runsync([0, {"bytes": 1_000_001}, 2, {"bytes": 1_000_002}, 4])["output"]
    assert [envelope.get("result") for envelope in output] == [0, None, 2, None, 4]
    for envelope, size in ((output[1], 1_000_003), (output[3], 1_000_004)):
        message = f"A result of {size} bytes could not be stored: EndpointConnectionError."
        assert envelope["failure"] == {"type": "NotStored", "message": message}
    said = caller.log.read_text()
    assert "EndpointConnectionError" in said
    assert SECRET not in said
    assert KEY_ID not in said


def test_what_the_bucket_refuses_is_named_without_the_credentials(serve: Serve, store: dict[str, str]) -> None:
    caller = serve("hostile", **{**store, "BUCKET_NAME": "not-there"})
    state = caller.runsync([{"bytes": 1_000_000}])
    assert state["output"][0]["failure"]["message"].endswith(
        "could not be stored: the bucket answered 404 NoSuchBucket."
    )
    everything = json.dumps(state) + caller.log.read_text()
    assert SECRET not in everything
    assert KEY_ID not in everything


def test_a_url_is_for_reading_one_result_and_holds_no_secret(serve: Serve, store: dict[str, str]) -> None:
    """The signature is of GET, this path and these 7 days (AWS Signature Version 4), and holds for nothing else."""
    state = serve("hostile", **store).runsync([{"bytes": 1_000_000}])
    url = httpx.URL(state["output"][0]["result_url"])
    assert url.path == f"/results/{state['id']}/0.json"
    assert url.params["X-Amz-Expires"] == "604800"
    assert SECRET not in str(url.params)
    assert SECRET not in str(url)
    key_id, _, scope = url.params["X-Amz-Credential"].partition("/")
    assert key_id == KEY_ID
    query = "&".join(sorted(part for part in url.query.decode().split("&") if not part.startswith("X-Amz-Signature=")))
    request = f"GET\n{url.path}\n{query}\nhost:{url.netloc.decode()}\n\nhost\nUNSIGNED-PAYLOAD"
    digest = hashlib.sha256(request.encode()).hexdigest()
    signed = f"AWS4-HMAC-SHA256\n{url.params['X-Amz-Date']}\n{scope}\n{digest}"
    keys = [*scope.split("/"), signed]
    signature = reduce(lambda key, text: hmac.digest(key, text.encode(), "sha256"), keys, f"AWS4{SECRET}".encode())
    assert url.params["X-Amz-Signature"] == signature.hex()


def test_a_jobs_own_bucket_is_not_used(serve: Serve, store: dict[str, str]) -> None:
    caller = serve("hostile")
    job = {"input": {"items": [{"bytes": 1_000_000}]}, "s3Config": s3_config(store, "of-the-job")}
    [envelope] = caller.post("/runsync", json=job).json()["output"]
    assert "result" in envelope
    assert not keys(store, "of-the-job")


def test_a_jobs_own_bucket_wins_where_it_is_allowed(serve: Serve, store: dict[str, str]) -> None:
    caller = serve("hostile", ALLOW_JOB_BUCKET="true", **store)
    job = {"input": {"items": [{"bytes": 1_000_000}]}, "s3Config": s3_config(store, "of-the-job")}
    state = caller.post("/runsync", json=job).json()
    assert read(state["output"][0]) == "x" * 1_000_000
    assert keys(store, "of-the-job") == {f"{state['id']}/0.json"}
    assert SECRET not in caller.log.read_text()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"accessId": "a"}, "endpointUrl is missing; accessSecret is missing; bucketName is missing"),
        ({"endpointUrl": "file:///etc/passwd"}, "endpointUrl must be a URL such as"),
        ("bucket", "should be a valid dictionary"),
    ],
)
def test_a_jobs_own_bucket_that_cannot_be_used_is_refused(serve: Serve, config: Any, sentence: str) -> None:
    caller = serve("hostile", ALLOW_JOB_BUCKET="true")
    state = caller.post("/runsync", json={"input": {"items": [1]}, "s3Config": config}).json()
    assert state["status"] == "FAILED"
    assert state["error"].startswith("The job's s3Config cannot be used: ")
    assert sentence in state["error"]


@pytest.mark.parametrize(
    ("host", "store", "region", "virtual"),
    [
        ("s3.eu-west-1.amazonaws.com", "s3.eu-west-1.amazonaws.com", "eu-west-1", True),
        ("results.s3.us-west-2.amazonaws.com", "s3.us-west-2.amazonaws.com", "us-west-2", True),
        ("results.oss-cn-beijing.aliyuncs.com", "oss-cn-beijing.aliyuncs.com", "us-east-1", True),
        ("nyc3.digitaloceanspaces.com", "nyc3.digitaloceanspaces.com", "nyc3", False),
        ("s3api-eu-ro-1.runpod.io", "s3api-eu-ro-1.runpod.io", "eu-ro-1", False),
        ("127.0.0.1:9000", "127.0.0.1:9000", "us-east-1", False),
    ],
)
def test_each_store_is_addressed_as_it_needs(host: str, store: str, region: str, virtual: bool) -> None:
    bucket = at(f"https://{host}/", "results")
    assert (bucket.endpoint_url, bucket.region, bucket.virtual) == (f"https://{store}", region, virtual)
    place = {"Bucket": "results", "Key": "a b-u1/10.json"}
    signed = bucket._client.generate_presigned_url("get_object", Params=place, ExpiresIn=604_800)
    assert len(signed) <= bucket.url_bytes(place["Key"])
    assert signed.startswith(f"https://results.{store}/a%20b" if virtual else f"https://{store}/results/a%20b")
