"""``--files`` saves every file of a result, complete and named by its item's index, inline or in a bucket."""

import base64
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aggregating_worker.client import Client
from aggregating_worker.client.files import name_of
from aggregating_worker.local import LocalEndpoint
from tests.calling import Answer, Request, call, client, command, environment, job_of, lines, serve_http
from tests.conftest import LIBRARY

PICTURE = random.Random(1).randbytes(300_000)

DRAWING = """
import base64, os, random, runpod
picture = random.Random(1).randbytes(300_000)
def file(**where):
    return {"content_type": "image/png", "bytes": len(picture), **where}
data = base64.b64encode(picture).decode()
RESULTS = {
    "inline": file(data=data),
    "stored": file(url=os.environ["BUCKET"] + "/picture"),
    "deep": {"images": [file(data=data), file(url=os.environ["BUCKET"] + "/picture")], "seed": 1, "none": {"bytes": 3}},
    "gone": file(url=os.environ["BUCKET"] + "/gone"),
    "short": file(url=os.environ["BUCKET"] + "/short"),
    "long": file(url=os.environ["BUCKET"] + "/long"),
    "elsewhere": file(url="file:///etc/passwd"),
    "odd": {"content_type": "../../x; charset=x", "bytes": 1, "data": "eA=="},
    "not base64": file(data="?"),
    "cut": file(data=data[:400]),
}
def handler(job):
    for index, name in enumerate(job["input"]["items"]):
        yield {"index": index, "success": True, "result": RESULTS[name]}
runpod.serverless.start({"handler": handler, "return_aggregate_stream": True})
"""
"""A worker whose results have files in them, in a bucket or not."""


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    def answer(request: Request) -> Answer:
        assert "authorization" not in request.headers
        pictures = {"/picture": PICTURE, "/short": PICTURE[:-1], "/long": PICTURE + b"!"}
        return Answer(200, pictures[request.path]) if request.path in pictures else Answer(403)

    with serve_http(answer) as address:
        yield address


@pytest.fixture(scope="module")
def drawing(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    code = "from aggregating_worker import before_sdk; before_sdk.prepare()" + DRAWING
    with (
        (tmp_path_factory.mktemp("drawing") / "worker.log").open("wb") as log,
        LocalEndpoint([sys.executable, "-u", "-c", code], env={"BUCKET": bucket}, log=log) as endpoint,
    ):
        yield endpoint.base_url


def path_of(path: Path) -> dict[str, Any]:
    return {"content_type": "image/png", "bytes": len(PICTURE), "path": str(path)}


@pytest.mark.parametrize("operation", ["run", "runsync", "stream"])
def test_each_operation_puts_files_into_a_folder_and_their_paths_into_the_results(
    drawing: str, tmp_path: Path, operation: str
) -> None:
    folder = tmp_path / "not" / "there"
    finished = client(drawing, operation, "-", "--files", str(folder), given=job_of("inline", "stored", "deep"))
    paths = [folder / name for name in ("0-0.png", "1-0.png", "2-0.png", "2-1.png")]
    assert [envelope["result"] for envelope in lines(finished.stdout)] == [
        path_of(paths[0]),
        path_of(paths[1]),
        {"images": [path_of(paths[2]), path_of(paths[3])], "seed": 1, "none": {"bytes": 3}},
    ]
    assert sorted(folder.iterdir()) == paths
    assert all(path.read_bytes() == PICTURE for path in paths)


def test_without_a_folder_files_stay_as_they_are(drawing: str, bucket: str) -> None:
    finished = client(drawing, "run", "-", given=job_of("inline", "stored"))
    inline, stored = (envelope["result"] for envelope in lines(finished.stdout))
    assert base64.b64decode(inline["data"]) == PICTURE
    assert stored == {"content_type": "image/png", "bytes": len(PICTURE), "url": f"{bucket}/picture"}


def test_a_terminal_is_shown_the_size_of_long_data(drawing: str) -> None:
    terminal, shown = os.openpty()
    with subprocess.Popen(
        command("run", "-"), cwd=LIBRARY, env=environment(drawing), stdin=subprocess.PIPE, stdout=shown
    ) as process:
        os.close(shown)
        process.communicate(job_of("inline"), timeout=30)
    with os.fdopen(terminal, "rb", buffering=0) as screen:
        [envelope] = lines(screen.read(10_000))
    assert envelope["result"]["data"].endswith("… (300000 bytes)")
    assert len(envelope["result"]["data"]) < 100


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("gone", "answered 403"),
        ("short", "299999 of 300000 bytes"),
        ("long", "more than 300000 bytes"),
        ("elsewhere", "file:///etc/passwd is not a web address."),
        ("not base64", "Its data is not base64"),
        ("cut", "It has 300 of 300000 bytes"),
    ],
)
def test_a_file_that_cannot_be_saved_fails_its_item_only_and_leaves_nothing(
    drawing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, sentence: str
) -> None:
    monkeypatch.setattr("aggregating_worker.client.http.ATTEMPTS", 2)

    async def run(caller: Client) -> Any:
        streamed = caller.stream({"input": {"items": [kind, "inline"]}})
        return [await caller.save_files(envelope, tmp_path) async for envelope in streamed]

    failed, saved = call(drawing, run)
    assert failed["failure"]["type"] == "ResultUnavailable"
    assert failed["failure"]["message"].startswith("File 0 of the result could not be saved. ")
    assert sentence in failed["failure"]["message"]
    assert saved["result"] == path_of(tmp_path / "1-0.png")
    assert list(tmp_path.iterdir()) == [tmp_path / "1-0.png"]


def test_no_name_from_outside_becomes_a_files_name(drawing: str, tmp_path: Path) -> None:
    client(drawing, "run", "-", "--files", str(tmp_path / "files"), given=job_of("odd"))
    assert [path.name for path in tmp_path.rglob("*")] == ["files", "0-0.bin"]


@pytest.mark.parametrize(
    ("content_type", "url", "name"),
    [
        ("image/jpeg", "", "3-1.jpg"),
        ("audio/flac", "", "3-1.flac"),
        ("text/html; charset=utf-8", "", "3-1.html"),
        ("application/octet-stream", "", "3-1.bin"),
        ("application/octet-stream", "https://x/bucket/JOB/0-1.log?X-Amz-Date=1", "3-1.log"),
        ("text/plain", "https://x/JOB/0123abcd/0-1.srt", "3-1.srt"),
        ("image/png", "https://x/JOB/0-1.png/../../etc/passwd", "3-1.png"),
        ("image/png", "https://x/JOB/0-1.a%2Fb?", "3-1.png"),
        ("image/png", "https://x/?/0-1.exe/", "3-1.png"),
        ("../../x", "https://x/passwd", "3-1.bin"),
    ],
)
def test_a_file_has_the_name_that_it_has_in_the_bucket_or_its_types(content_type: str, url: str, name: str) -> None:
    assert name_of(3, 1, content_type, url) == name


def test_a_folder_that_cannot_be_written_is_a_sentence(drawing: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finished = client(drawing, "run", "-", "--files", str(tmp_path / "file"), given=job_of("inline"))
    assert (finished.returncode, finished.stdout) == (2, b"")
    assert finished.stderr.count(b"\n") == 1


def test_map_killed_on_the_way_brings_every_file_once_it_is_done(drawing: str, tmp_path: Path) -> None:
    items, out, folder = (tmp_path / name for name in ("items.jsonl", "out.jsonl", "files"))
    items.write_text('"inline"\n"stored"\n' * 60)
    arguments = ("map", str(items), "--out", str(out), "--files", str(folder), "--shard", "20")
    with subprocess.Popen(command(*arguments), cwd=LIBRARY, env=environment(drawing)) as process:
        while not folder.exists() or len(list(folder.iterdir())) < 20:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    finished = client(drawing, *arguments)
    assert finished.returncode == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{index}-0.png" for index in range(120))
    assert {path.read_bytes() for path in folder.iterdir()} == {PICTURE}
    written = [json.loads(line)["result"] for line in out.read_bytes().splitlines()]
    assert written == [path_of(folder / f"{index}-0.png") for index in range(120)]


def test_map_does_not_go_on_into_another_folder(drawing: str, tmp_path: Path) -> None:
    items, out = tmp_path / "items.jsonl", tmp_path / "out.jsonl"
    items.write_text('"inline"\n')
    client(drawing, "map", str(items), "--out", str(out), "--files", str(tmp_path / "a"), "--keep-journal")
    finished = client(drawing, "map", str(items), "--out", str(out), "--files", str(tmp_path / "b"))
    assert finished.returncode == 2
    assert b"was begun with another --files" in finished.stderr
