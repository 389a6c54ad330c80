"""Pictures all the way: through the production loop, into a real S3 server or the response, and onto a disk."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.calling import Answer, Request, client, serve_http
from tests.conftest import Serve
from tests.store import serve_s3
from tests.tasks.pictures import picture

SIZE = 3_000_000
ITEMS = [{"seeds": [index], "size": SIZE} for index in range(12)]
TASKS = ["pictures", "pictures_async", "pictures_batch"]


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, str]]:
    """Serve S3 with one bucket that is named like the host; return the worker's settings for it."""
    with serve_s3("localhost") as settings:
        yield {**settings, "BUCKET_ENDPOINT_URL": settings["BUCKET_ENDPOINT_URL"].replace("127.0.0.1", "localhost")}


@contextmanager
def failing(store: dict[str, str], refused: str) -> Iterator[dict[str, str]]:
    """Serve ``store``, but refuse the file named ``refused``; yield the worker's settings."""
    with httpx2.Client(base_url=store["BUCKET_ENDPOINT_URL"], timeout=30) as http:

        def answer(request: Request) -> Answer:
            if request.method == "PUT" and request.path.endswith(refused):
                return Answer(403, b"<Error><Code>AccessDenied</Code></Error>")
            headers = {name: value for name, value in request.headers.items() if name not in ("host", "expect")}
            got = http.request(request.method, request.path, content=request.body, headers=headers)
            return Answer(got.status_code, got.content)

        with serve_http(answer) as address:
            yield {**store, "BUCKET_ENDPOINT_URL": address}


def read(file: dict[str, Any]) -> bytes:
    """Return what is in a file, wherever it is."""
    if "data" in file:
        return base64.b64decode(file["data"])
    return httpx2.get(file["url"]).raise_for_status().content


@pytest.mark.parametrize("task", TASKS)
def test_12_pictures_of_3_mb_are_references_to_the_same_pictures(
    shared: Serve, store: dict[str, str], task: str
) -> None:
    """The bucket is named like the host, and its name is in the path nonetheless."""
    caller = shared(task, **store)
    job_id = caller.run(ITEMS)
    streamed = list(caller.stream(job_id))
    assert caller.status(job_id)["output"] == streamed
    assert [envelope["index"] for envelope in streamed] == [*range(12)]
    for index, file in enumerate(envelope["result"] for envelope in streamed):
        assert (file["content_type"], file["bytes"]) == ("image/png", SIZE)
        assert httpx2.URL(file["url"]).path == f"/localhost/{job_id}/{index}-0.png"
        answer = httpx2.get(file["url"]).raise_for_status()
        assert answer.content == picture(index, SIZE)
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["content-disposition"] == f'inline; filename="{index}-0.png"'


@pytest.mark.parametrize("task", TASKS)
def test_without_a_bucket_as_many_as_fit_are_inline_in_input_order_every_run_alike(shared: Serve, task: str) -> None:
    caller = shared(task)
    runs = [caller.runsync(ITEMS)["output"] for _ in range(3)]
    assert runs[0] == runs[1] == runs[2]
    assert [envelope["success"] for envelope in runs[0]] == [True] * 4 + [False] * 8  # each takes 4 of the 20 MB
    assert [read(envelope["result"]) for envelope in runs[0][:4]] == [picture(seed, SIZE) for seed in range(4)]
    assert {envelope["failure"]["type"] for envelope in runs[0][4:]} == {"OutputTooLarge"}


def test_an_upload_that_fails_costs_its_item_only(serve: Serve, store: dict[str, str]) -> None:
    with failing(store, "/3-0.png") as settings:
        output = serve("pictures", **settings).runsync(ITEMS[:6])["output"]
        assert [envelope["success"] for envelope in output] == [True, True, True, False, True, True]
        message = f"3-0.png, image/png of {SIZE} bytes could not be stored: the bucket answered 403 AccessDenied."
        assert output[3]["failure"] == {"type": "NotStored", "message": message}
        assert read(output[5]["result"]) == picture(5, SIZE)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("stored", [True, False], ids=["bucket", "inline"])
def test_a_result_keeps_its_shape_around_its_files(
    shared: Serve, store: dict[str, str], task: str, stored: bool
) -> None:
    item = {"seeds": [1, 2, 3], "size": 150_000}
    [envelope] = shared(task, **(store if stored else {})).runsync([item])["output"]
    first, second = envelope["result"]["images"]
    thumb = envelope["result"]["meta"]["thumb"]
    assert envelope["result"] == {"images": [first, second], "meta": {"thumb": thumb}, "seed": 1}
    for seed, file in enumerate((first, second, thumb), start=1):
        assert file.keys() == {"content_type", "bytes", "url" if stored else "data"}
        assert read(file) == picture(seed, 150_000)


@pytest.mark.parametrize("stored", [True, False], ids=["bucket", "inline"])
def test_map_brings_all_12_to_disk(shared: Serve, store: dict[str, str], tmp_path: Path, stored: bool) -> None:
    """Without a bucket, it asks again, in smaller jobs, for the pictures that did not fit."""
    caller = shared("pictures", **(store if stored else {}))
    items, out, folder = (tmp_path / name for name in ("items.jsonl", "out.jsonl", "files"))
    items.write_text("".join(f"{json.dumps(item)}\n" for item in ITEMS))
    called = client(caller.endpoint.base_url, "map", str(items), "--out", str(out), "--files", str(folder))
    assert called.returncode == 0
    results = [json.loads(line)["result"] for line in out.read_text().splitlines()]
    assert [Path(result["path"]).name for result in results] == [f"{index}-0.png" for index in range(12)]
    assert [Path(result["path"]).read_bytes() for result in results] == [picture(index, SIZE) for index in range(12)]
    assert len([*folder.iterdir()]) == 12


def test_a_files_name_is_the_same_in_the_bucket_for_a_browser_and_on_the_callers_disk(
    serve: Serve, store: dict[str, str], tmp_path: Path
) -> None:
    caller = serve("folders", **store, INLINE_FILE_BYTES="0")
    names = ["x.jpg", 'a"; filename="b.exe', "a\nb.png", "é.gif", "no extension"]
    job = json.dumps({"input": {"items": [{"picture": name} for name in names]}}).encode()
    called = client(caller.endpoint.base_url, "runsync", "-", "--files", str(tmp_path), given=job)
    assert called.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{index}-0.png" for index in range(5)]
    output = caller.runsync([{"picture": name} for name in names])["output"]
    for index, file in enumerate(envelope["result"] for envelope in output):
        assert httpx2.URL(file["url"]).path.rpartition("/")[2] == f"{index}-0.png"
        answer = httpx2.get(file["url"])
        assert answer.headers["content-disposition"] == f'inline; filename="{index}-0.png"'
