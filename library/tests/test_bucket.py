"""Results that do not fit the response are stored, on a real S3 server; only those that it refuses are lost."""

import hashlib
import hmac
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx2
import pytest
from botocore.exceptions import ClientError
from pydantic import ValidationError

from aggregating_worker.outcome.bucket import Access, Bucket, NotStored
from tests.calling import client
from tests.conftest import Serve
from tests.store import s3, serve_s3

SECRET = "secret/never+to/be=seen"
KEY_ID = "KEYIDNEVERSEENINLOGS"


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, str]]:
    """Serve S3 with one bucket; return the worker's settings for it."""
    with serve_s3("results", "of-the-job", key_id=KEY_ID, secret=SECRET) as settings:
        yield settings


@pytest.fixture
def dead_store(free_port: int, store: dict[str, str]) -> dict[str, str]:
    return {**store, "BUCKET_ENDPOINT_URL": f"http://127.0.0.1:{free_port}"}


def at(url: str, name: str | None = None, region: str | None = None) -> Bucket:
    given = {"endpointUrl": url, "accessId": "a/b", "accessSecret": "c", "bucketName": name, "region": region}
    return Bucket(Access.model_validate({field: value for field, value in given.items() if value}))


def keys(settings: dict[str, str], bucket: str) -> set[str]:
    found = s3(settings).list_objects_v2(Bucket=bucket).get("Contents", [])
    return {each["Key"] for each in found}


def read(envelope: dict[str, Any]) -> Any:
    """Return an envelope's result, wherever it is."""
    if "result_url" not in envelope:
        return envelope["result"]
    answer = httpx2.get(envelope["result_url"]).raise_for_status()
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


def test_a_result_too_large_for_a_chunk_is_stored_whatever_room_there_is(shared: Serve, store: dict[str, str]) -> None:
    [small, large] = shared("hostile", **store).runsync([{"bytes": 900_000}, {"bytes": 1_000_000}])["output"]
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


def test_a_url_is_for_reading_one_result_and_holds_no_secret(shared: Serve, store: dict[str, str]) -> None:
    """The signature is of GET, this path and these 7 days (AWS Signature Version 4), and holds for nothing else."""
    state = shared("hostile", **store).runsync([{"bytes": 1_000_000}])
    url = httpx2.URL(state["output"][0]["result_url"])
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
def test_a_jobs_own_bucket_that_cannot_be_used_is_refused(shared: Serve, config: Any, sentence: str) -> None:
    caller = shared("hostile", ALLOW_JOB_BUCKET="true")
    state = caller.post("/runsync", json={"input": {"items": [1]}, "s3Config": config}).json()
    assert state["status"] == "FAILED"
    assert state["error"].startswith("The job's s3Config cannot be used: ")
    assert sentence in state["error"]


@pytest.mark.parametrize(
    ("host", "store", "region", "virtual"),
    [
        ("s3.eu-west-1.amazonaws.com", "s3.eu-west-1.amazonaws.com", "eu-west-1", True),
        ("results.s3.us-west-2.amazonaws.com", "s3.us-west-2.amazonaws.com", "us-west-2", True),
        ("results.oss-cn-beijing.aliyuncs.com", "oss-cn-beijing.aliyuncs.com", "cn-beijing", True),
        ("oss-cn-beijing.aliyuncs.com", "oss-cn-beijing.aliyuncs.com", "cn-beijing", True),
        ("results.s3.cn-north-1.amazonaws.com.cn", "s3.cn-north-1.amazonaws.com.cn", "cn-north-1", True),
        ("results.nyc3.digitaloceanspaces.com", "nyc3.digitaloceanspaces.com", "nyc3", True),
        ("results.minio.example", "results.minio.example", "us-east-1", False),
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


R2 = "0123456789abcdef0123456789abcdef"
REGIONS = {
    # Amazon S3 (its General Reference, "Amazon S3 endpoints and quotas")
    "s3.eu-west-2.amazonaws.com": "eu-west-2",
    "s3-eu-west-1.amazonaws.com": "eu-west-1",
    "s3.dualstack.eu-west-2.amazonaws.com": "eu-west-2",
    "s3-fips.us-east-2.amazonaws.com": "us-east-2",
    "s3-fips.dualstack.us-gov-west-1.amazonaws.com": "us-gov-west-1",
    "s3-fips-us-gov-west-1.amazonaws.com": "us-gov-west-1",
    "s3.cn-north-1.amazonaws.com.cn": "cn-north-1",
    "s3.ap-southeast-7.amazonaws.com": "ap-southeast-7",
    "s3.il-central-1.amazonaws.com": "il-central-1",
    "bucket.vpce-1a2b3c4d-5e6f.s3.us-east-2.vpce.amazonaws.com": "us-east-2",
    "photos-111122223333.s3-accesspoint.us-west-2.amazonaws.com": "us-west-2",
    "photos-111122223333.s3-accesspoint-fips.us-gov-west-1.amazonaws.com": "us-gov-west-1",
    "s3.amazonaws.com": "us-east-1",
    "s3-external-1.amazonaws.com": "us-east-1",
    # Runpod's network volumes (docs, storage/s3-api): the data center, which the host has in small letters
    "s3api-eu-ro-1.runpod.io": "eu-ro-1",
    "s3api-eur-is-1.runpod.io": "eur-is-1",
    # Alibaba OSS ("Use AWS SDKs to access OSS")
    "oss-cn-hangzhou.aliyuncs.com": "cn-hangzhou",
    "oss-cn-hangzhou-internal.aliyuncs.com": "cn-hangzhou",
    "s3.oss-cn-hangzhou.aliyuncs.com": "cn-hangzhou",
    "s3.oss-eu-central-1-internal.aliyuncs.com": "eu-central-1",
    # Scaleway, OVHcloud, IONOS, Hetzner, Outscale, Selectel, Synology, Huawei: as in rclone's list of providers
    "s3.fr-par.scw.cloud": "fr-par",
    "s3.nl-ams.scw.cloud": "nl-ams",
    "s3.gra.io.cloud.ovh.net": "gra",
    "s3.gra.perf.cloud.ovh.net": "gra",
    "s3.eu-west-par.io.cloud.ovh.net": "eu-west-par",
    "s3.rbx-archive.io.cloud.ovh.net": "rbx-archive",
    "s3.us-east-va.io.cloud.ovh.us": "us-east-va",
    "s3.eu-central-3.ionoscloud.com": "eu-central-3",
    "s3.eu-central-1.ionoscloud.com": "de",
    "fsn1.your-objectstorage.com": "fsn1",
    "oos.cloudgouv-eu-west-1.outscale.com": "cloudgouv-eu-west-1",
    "s3.ru-1.storage.selcloud.ru": "ru-1",
    "eu-001.s3.synologyc2.net": "eu-001",
    "obs.cn-north-4.myhuaweicloud.com": "cn-north-4",
    "obs.ru-northwest-2.myhuaweicloud.com": "ru-northwest-2",
    # Tencent COS, Volcengine TOS
    "cos.ap-guangzhou.myqcloud.com": "ap-guangzhou",
    "cos.na-siliconvalley.myqcloud.com": "na-siliconvalley",
    "tos-s3-cn-beijing.volces.com": "cn-beijing",
    # IBM Cloud Object Storage ("Endpoints and storage locations")
    "s3.eu-de.cloud-object-storage.appdomain.cloud": "eu-de",
    "s3.us.cloud-object-storage.appdomain.cloud": "us",
    "s3.private.us-south.cloud-object-storage.appdomain.cloud": "us-south",
    "s3.direct.eu.cloud-object-storage.appdomain.cloud": "eu",
    "s3.private.dal.us.cloud-object-storage.appdomain.cloud": "us",
    # Linode, Vultr, DigitalOcean, Contabo, Exoscale, Backblaze, Wasabi, Oracle, IDrive e2, Gcore
    "us-east-1.linodeobjects.com": "us-east-1",
    "us-iad-10.linodeobjects.com": "us-iad-10",
    "ewr1.vultrobjects.com": "ewr1",
    "nyc3.digitaloceanspaces.com": "nyc3",
    "eu2.contabostorage.com": "eu2",
    "sos-ch-dk-2.exo.io": "ch-dk-2",
    "s3.us-west-004.backblazeb2.com": "us-west-004",
    "s3.eu-central-1.wasabisys.com": "eu-central-1",
    "s3.wasabisys.com": "us-east-1",
    "namespace.compat.objectstorage.eu-frankfurt-1.oraclecloud.com": "eu-frankfurt-1",
    "s3.us-west-1.idrivee2.com": "us-west-1",
    "s-ed1.cloud.gcore.lu": "s-ed1",
    # Stores with one region for all: Cloudflare R2, Google, Tigris, Yandex
    f"{R2}.r2.cloudflarestorage.com": "auto",
    f"{R2}.eu.r2.cloudflarestorage.com": "auto",
    "storage.googleapis.com": "auto",
    "t3.storage.dev": "auto",
    "fly.storage.tigris.dev": "auto",
    "storage.yandexcloud.net": "ru-central1",
    # Stores that take any, or whose host names none
    "gateway.storjshare.io": "us-east-1",
    "l4g4.ch11.idrivee2-2.com": "us-east-1",
    "abc12.upcloudobjects.com": "us-east-1",
    "s3.pub1.infomaniak.cloud": "us-east-1",
    "localhost:9000": "us-east-1",
    "192.0.2.1:9000": "us-east-1",
    "[::1]:9000": "us-east-1",
    "minio.example:9000": "us-east-1",
    "s3.example.com": "us-east-1",
    "s3.my-company.com": "us-east-1",
}
"""The region that each store documents for a host."""


@pytest.mark.parametrize(("host", "region"), REGIONS.items())
def test_the_region_is_the_one_that_the_store_documents(host: str, region: str) -> None:
    assert at(f"https://{host}", "results").region == region
    assert at(f"https://{host.upper()}/", "results").region == region
    assert at(f"https://{host}", "results", "eu-home").region == "eu-home"


@pytest.mark.parametrize("name", ["results", "s3-results", "us-east-2", "eu1", "NAME", "oss-cn-beijing"])
@pytest.mark.parametrize(
    "host",
    [
        "s3.eu-west-2.amazonaws.com",
        "s3-eu-west-1.amazonaws.com",
        "s3.dualstack.eu-west-2.amazonaws.com",
        "s3.amazonaws.com",
        "s3.fr-par.scw.cloud",
        "s3.gra.io.cloud.ovh.net",
        "s3.oss-cn-hangzhou.aliyuncs.com",
        "oss-cn-hangzhou.aliyuncs.com",
        "cos.ap-guangzhou.myqcloud.com",
        "s3.eu-de.cloud-object-storage.appdomain.cloud",
        "nyc3.digitaloceanspaces.com",
        "us-east-1.linodeobjects.com",
        "fsn1.your-objectstorage.com",
        "s3.us-west-004.backblazeb2.com",
        "sos-ch-dk-2.exo.io",
        f"{R2}.r2.cloudflarestorage.com",
        "storage.googleapis.com",
        "fly.storage.tigris.dev",
    ],
)
def test_without_a_name_the_bucket_is_the_one_that_the_host_begins_with(host: str, name: str) -> None:
    bucket = at(f"https://{name}.{host}/")
    assert (bucket.access.bucket, bucket.endpoint_url) == (name, f"https://{host}")
    assert bucket.region == at(f"https://{host}", name).region


@pytest.mark.parametrize("host", [host for host in REGIONS if not host.startswith("photos")])
def test_a_host_without_a_bucket_asks_for_its_name(host: str) -> None:
    with pytest.raises(ValidationError, match="bucketName"):
        at(f"https://{host}/")


class Shop(ThreadingHTTPServer):
    """A store that has one way to answer a PUT that must not overwrite."""

    def __init__(self, answer: Literal["keeps", "overwrites", "refuses", "tells nothing", "breaks"]) -> None:
        super().__init__(("127.0.0.1", 0), Counter)
        self.answer = answer
        self.objects: dict[str, bytes] = {}
        self.headers: dict[str, Any] = {}


class Counter(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # the client asks whether to go on (Expect), and else waits for a second
    server: Shop

    def do_PUT(self) -> None:
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers["Content-Length"]))
        careful = self.headers["If-None-Match"] == "*"
        if careful and self.server.answer == "refuses":
            return self._answer(501)
        if careful and self.server.answer == "keeps" and path in self.server.objects:
            return self._answer(412)
        self.server.objects[path] = body
        self.server.headers[path] = self.headers
        return self._answer(200)

    def do_GET(self) -> None:
        body = self.server.objects.get(urlsplit(self.path).path)
        self._answer(404 if body is None else 200, body or b"")

    def do_HEAD(self) -> None:
        if self.server.answer == "tells nothing":
            return self._answer(403)
        if self.server.answer == "breaks":
            self.close_connection = True
            return None
        return self.do_GET()

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@pytest.fixture(params=["keeps", "overwrites", "refuses", "tells nothing", "breaks"])
def shop(request: pytest.FixtureRequest) -> Iterator[Shop]:
    with Shop(request.param) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_two_runs_of_a_job_keep_each_others_objects_whatever_the_store_knows(shop: Shop) -> None:
    """Each run in a worker of its own."""
    workers = [at(f"http://127.0.0.1:{shop.server_port}", "results") for _ in range(2)]
    runs = [
        (f"job-{job}/{index}-0.png", b"%d of run %d" % (index, run), worker)
        for job in range(2)
        for run, worker in enumerate(workers)
        for index in range(3)
    ]
    urls = [worker.store(key, body, "image/png", "0.png") for key, body, worker in runs]
    assert [httpx2.get(url).content for url in urls] == [body for _, body, _ in runs]
    for url, (key, _, _) in zip(urls, runs, strict=True):
        job, name = key.split("/")
        assert re.fullmatch(rf"/results/{job}/([0-9a-f]{{8}}/)?{name}", httpx2.URL(url).path)
    if shop.answer == "keeps":
        assert [httpx2.URL(url).path for url in urls[:3]] == [f"/results/job-0/{index}-0.png" for index in range(3)]


def test_two_runs_of_a_job_keep_each_others_objects(store: dict[str, str]) -> None:
    urls = [at(store["BUCKET_ENDPOINT_URL"], "results").store("twice/0.json", b'"%d"' % run) for run in range(2)]
    assert [httpx2.get(url).json() for url in urls] == ["0", "1"]
    first, second = sorted((key for key in keys(store, "results") if key.startswith("twice/")), key=len)
    assert first == "twice/0.json"
    assert re.fullmatch("twice/[0-9a-f]{8}/0.json", second)


@pytest.mark.parametrize("shop", ["keeps", "tells nothing"], indirect=True)
def test_what_is_stored_says_what_it_is(shop: Shop) -> None:
    bucket = at(f"http://127.0.0.1:{shop.server_port}", "results")
    for name, said in (("", ("application/json", None)), ("3.png", ("image/png", 'inline; filename="3.png"'))):
        url = bucket.store("job/3", b"x", said[0], name) if name else bucket.store("job/3", b"x")
        headers = shop.headers[httpx2.URL(url).path]
        assert (headers["Content-Type"], headers["Content-Disposition"]) == said
        assert httpx2.URL(url).params["X-Amz-Expires"] == "604800"
        assert len(url) <= bucket.url_bytes("job/3")


class Client:
    """Takes nothing, whichever way."""

    exceptions = SimpleNamespace(ClientError=ClientError)

    def __init__(self, error: Exception) -> None:
        self.error = error

    def head_object(self, **_: str) -> None:
        raise ClientError({"ResponseMetadata": {"HTTPStatusCode": 404}}, "HeadObject")

    def put_object(self, **_: str) -> None:
        raise self.error


def refused(status: int | None, code: str | None) -> ClientError:
    answer: Any = {"Error": {"Code": code, "Message": SECRET} if code else {}}
    return ClientError(answer | ({"ResponseMetadata": {"HTTPStatusCode": status}} if status else {}), "PutObject")


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (refused(403, "AccessDenied"), "the bucket answered 403 AccessDenied"),
        (refused(503, f"<{KEY_ID}>"), "the bucket answered 503"),
        (refused(403, "A" * 41), "the bucket answered 403"),
        (refused(None, None), "the bucket answered"),
        (ConnectionError(SECRET), "ConnectionError"),
    ],
    ids=str,
)
def test_what_could_not_be_stored_is_said_with_the_reason_and_nothing_secret(error: Exception, why: str) -> None:
    bucket = at("https://localhost", "results")
    bucket.__dict__["_client"] = Client(error)
    with pytest.raises(NotStored, match=f"^A result of 3 bytes could not be stored: {why}.$"):
        bucket.store("job/0.json", b"abc")
    with pytest.raises(NotStored, match=f"^0.png, image/png of 2 bytes could not be stored: {why}.$"):
        bucket.store("job/0.png", b"ab", "image/png", "0.png")


def test_many_files_at_once(shop: Shop) -> None:
    bucket = at(f"http://127.0.0.1:{shop.server_port}", "results")
    bodies = [b"%d" % index for index in range(40)]
    with ThreadPoolExecutor(16) as pool:
        urls = [*pool.map(lambda body: bucket.store(f"job/{int(body)}-0.png", body), bodies)]
    assert [httpx2.get(url).content for url in urls] == bodies


def test_a_bucket_is_waited_for_in_bounds_by_many_at_once_and_asked_for_nothing_that_others_do_not_know() -> None:
    config = at("https://localhost", "results")._client.meta.config
    assert (config.connect_timeout, config.read_timeout, config.max_pool_connections) == (5, 30, 64)
    assert config.retries == {"total_max_attempts": 3, "mode": "standard"}
    assert config.request_checksum_calculation == config.response_checksum_validation == "when_required"
    assert config.signature_version == "s3v4"
