"""Files in results: at any depth of them, inline or in the bucket, and never another item's."""

import asyncio
import base64
import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filetype
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from aggregating_worker.outcome.files import File, Unencoded
from aggregating_worker.outcome.kind import extension_of
from aggregating_worker.outcome.overflow import Output
from aggregating_worker.outcome.picture import NotAFile
from aggregating_worker.outcome.result import Outcome, encoded, seal, with_files
from tests.engine import make, run

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


class Model(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True, extra="allow")

    picture: Any = Field(serialization_alias="image")
    seed: int = 1


@dataclasses.dataclass
class Record:
    picture: Any
    names: list[str]


def found(value: Any) -> Unencoded:
    made = seal(3, value)
    assert isinstance(made, Unencoded)
    return made


def sealed(value: Any) -> Outcome:
    made = found(value)
    made.take()
    return Output("job", 10, 10_000_000).seal(3, with_files(made))


def result(value: Any) -> Any:
    body = sealed(value).body
    assert body["success"], body
    return body["result"]


def inline(content: bytes, content_type: str) -> dict[str, Any]:
    data = base64.b64encode(content).decode()
    return {"content_type": content_type, "bytes": len(content), "data": data}


@pytest.mark.parametrize(
    "made", [bytes, bytearray, memoryview, io.BytesIO], ids=["bytes", "bytearray", "memoryview", "BytesIO"]
)
def test_bytes_of_every_kind_are_a_file_whose_type_is_told_by_its_content(made: Callable[[bytes], Any]) -> None:
    assert result(made(PNG)) == inline(PNG, "image/png")
    assert result(made(b"?")) == inline(b"?", "application/octet-stream")


def test_a_path_is_its_files_content_and_its_name_tells_what_the_content_does_not(tmp_path: Path) -> None:
    unknown = "application/octet-stream"
    for name, content, kind in (("a.csv", b"a,b\n", "text/csv"), ("a.txt", PNG, "image/png"), ("a", b"", unknown)):
        (tmp_path / name).write_bytes(content)
        assert result(tmp_path / name) == inline(content, kind)


@pytest.mark.parametrize("missing", ["nothing", "."])
def test_a_path_that_is_no_file_is_a_failure_that_names_it(tmp_path: Path, missing: str) -> None:
    made = found({"file": tmp_path / missing})
    with pytest.raises(NotAFile, match=str(tmp_path)):
        made.take()


@pytest.mark.parametrize(
    ("image_format", "kind"), [(None, "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp")]
)
def test_a_picture_is_png_or_what_it_was_opened_as(image_format: str | None, kind: str) -> None:
    picture = Image.new("RGB", (8, 4), "red")
    if image_format:
        buffer = io.BytesIO()
        picture.save(buffer, image_format)
        picture = Image.open(buffer)
    file = result(picture)
    assert file["content_type"] == kind
    assert Image.open(io.BytesIO(base64.b64decode(file["data"]))).size == (8, 4)


def test_a_path_without_an_end_is_no_file(fifo: Path) -> None:
    for path in (fifo, Path("/dev/zero")):
        with pytest.raises(NotAFile, match=str(path)):
            File(path).take()


def failed(value: Any, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Return the failure of an item whose result is ``value``; its traceback is in the log."""
    [body] = asyncio.run(run(make(lambda item, job: value), ["item"]))
    out = capsys.readouterr().out
    assert "Item 0 has no result that can be sent\nTraceback" in out
    assert body["failure"]["type"] in out
    failure: dict[str, Any] = body["failure"]
    return failure


def test_what_cannot_be_sent_is_found_beside_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    failure = failed({"image": Image.new("RGB", (2, 2)), "size": float("nan")}, capsys)
    assert failure["message"].startswith("result.size is NaN")


def test_a_result_keeps_its_shape() -> None:
    picture = Image.new("RGB", (2, 2))
    made = result({"images": [picture, picture], "meta": {"thumb": picture}, "seed": 1, "array": np.arange(2)})
    assert made.keys() == {"images", "meta", "seed", "array"}
    for file in (*made["images"], made["meta"]["thumb"]):
        assert file.keys() == {"content_type", "bytes", "data"}
    assert (made["seed"], made["array"]) == (1, [0, 1])


def test_models_and_dataclasses_are_what_they_make_of_themselves() -> None:
    model = Model.model_validate({"picture": PNG, "more": 2})
    assert result(model) == {"image": inline(PNG, "image/png"), "seed": 1, "more": 2}
    assert result([Record(PNG, ["a"])]) == [{"picture": inline(PNG, "image/png"), "names": ["a"]}]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(json_values)
def test_what_has_no_file_in_it_is_left_as_it_is(value: Any) -> None:
    assert isinstance(seal(3, value), Outcome)


@given(values=st.lists(json_values | st.binary(max_size=50), min_size=1, max_size=6))
def test_whatever_is_around_a_file_stays(values: list[Any]) -> None:
    made = result({"list": values, "file": PNG})
    expected = [inline(value, _kind(value)) if isinstance(value, bytes) else value for value in values]
    assert json.dumps(made) == json.dumps({"list": expected, "file": inline(PNG, "image/png")})


def _kind(content: bytes) -> str:
    return File(content).kind()[0]


def test_a_cycle_with_a_file_in_it_is_for_the_encoder_to_refuse(capsys: pytest.CaptureFixture[str]) -> None:
    cycle: list[Any] = [b"text"]
    cycle.append(cycle)
    assert failed(cycle, capsys)["type"] == "ValueError"


def test_what_the_task_changes_after_it_has_returned_changes_nothing(tmp_path: Path) -> None:
    path, buffer, picture = tmp_path / "out.png", bytearray(b"first"), Image.new("L", (1, 1), 10)
    path.write_bytes(b"first")
    made = found([path, buffer, picture])
    made.take()
    path.unlink()
    buffer[:] = b"other"
    picture.putpixel((0, 0), 200)
    *texts, copy = Output("job", 1, 10_000).seal(0, with_files(made)).body["result"]
    assert [base64.b64decode(text["data"]) for text in texts] == [b"first"] * 2
    assert Image.open(io.BytesIO(base64.b64decode(copy["data"]))).getpixel((0, 0)) == 10


def test_the_size_of_an_envelope_with_files_is_exact() -> None:
    outcome = sealed({"é": [PNG, {"file-": PNG}]})
    assert outcome.encoded == encoded(outcome.body)


@pytest.mark.parametrize(
    ("name", "content", "kind", "extension"),
    [
        ("x.jpg", PNG, "image/png", "png"),
        ("x.csv", b"a,b", "text/csv", "csv"),
        ("X.LOG", b"a", "application/octet-stream", "log"),
        ("x.safetensors", b"a", "application/octet-stream", "safetensors"),
        ("x.csv.br", b"a", "application/octet-stream", "br"),
        ('x.a"b', b"a", "application/octet-stream", "bin"),
        ("x.a\r\nSet-Cookie: a", b"a", "application/octet-stream", "bin"),
        ("x.a\\b", b"a", "application/octet-stream", "bin"),
        ("x.é", b"a", "application/octet-stream", "bin"),
        ("x.\u202egpj", b"a", "application/octet-stream", "bin"),
        ("x." + "a" * 100, b"a", "application/octet-stream", "bin"),
        ("x.", b"a", "application/octet-stream", "bin"),
        (".png", b"a", "application/octet-stream", "bin"),
    ],
)
def test_an_extension_is_told_by_the_content_or_else_safe(
    tmp_path: Path, name: str, content: bytes, kind: str, extension: str
) -> None:
    (tmp_path / name).write_bytes(content)
    file = File(tmp_path / name)
    file.take()
    assert file.kind() == (kind, extension)


def test_what_content_tells_has_the_same_extension_at_the_callers_side() -> None:
    for kind in filetype.TYPES:
        if kind.mime not in ("application/octet-stream", "application/font-woff", "application/font-sfnt"):
            assert extension_of(kind.mime) == kind.extension.lower()


def test_a_picture_is_named_by_what_it_has_become() -> None:
    image = Image.new("RGB", (4, 4))
    for image_format, kind in (
        ("JPEG", ("image/jpeg", "jpg")),
        ("TIFF", ("image/tiff", "tif")),
        ("PPM", ("image/x-portable-pixmap", "ppm")),
        ("TGA", ("application/octet-stream", "tga")),
    ):
        image.format = image_format
        file = File(image)
        file.take()
        file.encode()
        assert file.kind() == kind
