"""``aggregating-worker schema`` describes what a job may ask for and what it answers, whatever the task returns."""

import asyncio
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from jsonschema import Draft202012Validator
from PIL import Image

from aggregating_worker.outcome.files import Unencoded
from aggregating_worker.outcome.result import failure, reference, seal, success_with_files, with_files
from aggregating_worker.refusal import Refused
from aggregating_worker.schema import schemas
from tests.conftest import LIBRARY, Serve
from tests.tasks.every_fault import FAULTS

POINTS = LIBRARY.parent / "{{cookiecutter.project_slug}}" / "starting_points"
STORED = {"content_type": "image/png", "bytes": 3, "url": "https://store.example/1-0.png"}
BEFORE = """
from __future__ import annotations
import dataclasses, datetime, decimal, enum, io, pathlib, typing, uuid
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from functools import partial, wraps
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn
import numpy, numpy.typing
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, RootModel, computed_field
from typing_extensions import TypedDict
if TYPE_CHECKING:
    from aggregating_worker import Context

class Input(BaseModel):
    model_config = ConfigDict(extra="forbid")
    items: list[Any]

class Picture(TypedDict):
    image: Image.Image
    seed: int

@dataclasses.dataclass
class Log:
    file: pathlib.Path
    buffer: io.BytesIO | None = None

class Kind(enum.Enum):
    A = 1

class Model(BaseModel):
    name: str = Field(serialization_alias="called")
    inner: Model | None = None
    raw: bytes = b""

    @computed_field
    @property
    def length(self) -> int:
        return len(self.name)

class Success(BaseModel):
    of: str
"""


def imported(name: str, source: str) -> ModuleType:
    module = ModuleType(name)
    sys.modules[name] = module
    exec(source, vars(module))
    return module


@pytest.fixture(autouse=True)
def modules() -> Iterator[None]:
    """Forget what a test has imported."""
    before = {*sys.modules}
    yield
    for name in {*sys.modules} - before:
        if name.partition(".")[0] in ("task", "tests") and name != "tests":
            del sys.modules[name]


def returning(annotation: str, body: str = "...", before: str = "") -> ModuleType:
    function = f"def process(item: Any, job: Input, context: Context) -> {annotation}:\n    {body}\n"
    return imported("task", f"{BEFORE}\n{before}\n{function}")


def validator(task: ModuleType, part: str = "envelope") -> Draft202012Validator:
    found = schemas(task)
    assert list(found) == ["input", "envelope"]
    for schema in found.values():
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        Draft202012Validator.check_schema(schema)
    return Draft202012Validator(found[part])


def envelope(result: object) -> Any:
    """What the worker sends of a result."""
    sealed = seal(0, result)
    if isinstance(sealed, Unencoded):
        sealed.take()
        return success_with_files(0, with_files(sealed), lambda *_: None).body
    return sealed.body


@pytest.mark.parametrize(
    ("annotation", "results", "others"),
    [
        ("Any", ["3", "[None]"], []),
        ("list[Any]", ["[]", "[1, 'a']"], ["1"]),
        ("None", ["None"], ["0"]),
        ("str | None", ["'a'", "None"], ["1"]),
        ("list", ["[1]"], []),
        ("dict[str, list[float]]", ["{'a': [1.5]}"], ["{'a': 1}", "[]"]),
        ("bytes", ["b'abc'"], ["'abc'"]),
        ("list[bytearray | memoryview]", ["[b'a', bytearray(b'b')]"], ["'abc'"]),
        ("dict[str, pathlib.Path]", ["{'a': pathlib.Path(__import__('sys').executable)}"], ["{'a': '/a'}"]),
        ("dict[str, pathlib.PurePath]", ["{'a': '/a'}"], ["{'a': b'abc'}"]),
        ("Image.Image", ["Image.new('L', (1, 1))"], ["'abc'"]),
        (
            "list[Picture | Exception]",
            ["[{'image': Image.new('L', (1, 1)), 'seed': 1}]"],
            ["[{'image': 'abc', 'seed': 1}]", "[{'seed': 1}]", "['ValueError']"],
        ),
        ("Log", ["Log(pathlib.Path(__import__('sys').executable), io.BytesIO(b'abc'))"], ["{'file': 'a'}"]),
        ("Model", ["Model(name='a', inner=Model(name='b', raw=b'b'))"], ["{'name': 'a'}", "{'called': 'a'}"]),
        ("Success", ["Success(of='a')"], ["{'of': 1}"]),
        ("RootModel[list[int]]", ["RootModel[list[int]]([1])"], ["['a']"]),
        ("Kind", ["Kind.A"], ["2"]),
        ("datetime.datetime", ["datetime.datetime.now()"], ["1"]),
        ("decimal.Decimal", ["decimal.Decimal('1.5')"], ["[]"]),
        ("uuid.UUID | set[int]", ["uuid.uuid4()", "{1}"], ["1"]),
        ("tuple[int, str]", ["(1, 'a')"], ["(1,)"]),
        ("numpy.ndarray", ["numpy.zeros((2, 2))"], []),
        ("dict[str, numpy.typing.NDArray[numpy.float32]]", ["{'a': numpy.zeros(2)}"], ["1"]),
        ("dict[str, numpy.float32]", ["{'a': numpy.float32(1)}"], []),
        ("Annotated[bytes, PlainSerializer(bytes.hex, return_type=str)]", ["'616263'"], ["1"]),
        ("Annotated[Image.Image, PlainSerializer(str, return_type=str)]", ["'abc'"], ["1"]),
        ("Nowhere", ["1"], []),
        ("list['Nowhere']", ["1"], []),
        ("NoReturn", [], []),
        ("1 + 1", ["1"], []),
        ("object", ["1"], []),
    ],
)
def test_a_result_is_described_as_it_is_sent(annotation: str, results: list[str], others: list[str]) -> None:
    task = returning(annotation)
    accepted = validator(task)
    for result in results:
        accepted.validate(envelope(eval(result, vars(task))))
    for other in others:
        assert not accepted.is_valid(envelope(eval(other, vars(task))))


@pytest.mark.parametrize(
    ("annotation", "results", "others"),
    [
        ("Iterator[str]", ["ab", ""], [["a", "b"], 1]),
        ("Generator[str, None, None]", ["ab"], [["a"]]),
        ("Iterator[int]", [[1, 2], ""], [["a"], 1]),
        ("Iterator[Picture]", [[{"image": STORED, "seed": 1}]], [[{"seed": 1}]]),
        ("Iterator", [[1], "ab"], [1]),
        ("Any", [[1], "ab"], [1]),
    ],
)
def test_the_parts_of_an_item_are_one_text_or_a_list(annotation: str, results: list[Any], others: list[Any]) -> None:
    accepted = validator(returning(annotation, "yield"))
    for result in results:
        accepted.validate({"index": 0, "success": True, "result": result})
    for other in others:
        assert not accepted.is_valid({"index": 0, "success": True, "result": other})


@pytest.mark.parametrize(
    "source",
    [
        "async def process(item, job) -> int: ...",
        "def process_batch(items, job) -> list[int]: ...",
        "async def process_batch(items, job, contexts: list[Context]) -> Sequence[int | Exception]: ...",
        "def timed(f): return wraps(f)(lambda *a: f(*a))\n@timed\ndef process(item, job) -> int: ...",
        "def of(model, item, job) -> int: ...\nprocess = partial(of, None)",
        "class Model_:\n    def __call__(self, item, job) -> int: ...\nprocess = Model_()",
        "class Model_:\n    def run(self, item, job) -> int: ...\nprocess = Model_().run",
    ],
)
def test_a_function_of_any_kind_may_say_what_it_returns(source: str) -> None:
    accepted = validator(imported("task", f"{BEFORE}\n{source}"))
    accepted.validate({"index": 0, "success": True, "result": 1})
    assert not accepted.is_valid({"index": 0, "success": True, "result": "a"})


@pytest.mark.parametrize("source", ["def process(item, job): ...", "def process_batch(items, job) -> list: ..."])
def test_without_an_annotation_a_result_is_anything(source: str) -> None:
    validator(imported("task", f"{BEFORE}\n{source}")).validate({"index": 0, "success": True, "result": ["a"]})


def test_an_envelope_is_a_result_or_where_it_is_stored_or_a_failure() -> None:
    accepted = validator(returning("dict[str, bytes]"))
    accepted.validate(reference(1, "https://store.example/1.json", 2_000_000).body)
    accepted.validate(failure(10**12, "ValueError", "is wrong").body)
    accepted.validate(failure(0, "Error", "", {"more": [1]}).body)
    accepted.validate(envelope({"file": b"abc"}))
    accepted.validate({"index": 0, "success": True, "result": {"file": STORED}})
    for other in (
        {},
        {"index": 0, "success": True},
        {"index": -1, "success": True, "result": {}},
        {"index": 0, "success": False, "result": {}},
        {"index": 0, "success": True, "failure": {"type": "ValueError", "message": ""}},
        {"index": 0, "success": False, "failure": {"type": "ValueError"}},
        {"index": 0, "success": True, "result": {}, "result_url": "https://store.example/1.json", "bytes": 1},
        {"index": 0, "parts": ["a"]},
        {"index": 0, "success": True, "result": {"file": {**STORED, "data": "YWJj"}}},
    ):
        assert not accepted.is_valid(other)


def test_an_input_may_have_a_first_index_whether_it_says_so_or_not() -> None:
    accepted = validator(returning("Any"), "input")
    accepted.validate({"items": [1]})
    accepted.validate({"items": [1], "first_index": 400})
    for other in ({}, {"items": [1], "first_index": -1}, {"items": [1], "first_index": "1"}, {"items": [1], "x": 1}):
        assert not accepted.is_valid(other)
    own = "class Input(BaseModel):\n    items: list[int] = Field(alias='texts')\n    first_index: Literal[0, 200] = 0"
    accepted = validator(returning("Any", before=own), "input")
    accepted.validate({"texts": [1], "first_index": 200})
    assert not accepted.is_valid({"texts": [1], "first_index": 1})


def test_what_has_no_schema_in_an_input_is_anything() -> None:
    own = """
class Input(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    items: list[numpy.ndarray]
    key: typing.Callable = print
    data: bytes = b"abc"
"""
    validator(returning("Any", before=own), "input").validate({"items": [[1]], "data": "abc"})


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("Input = 1", "task.py must define Input, a subclass of pydantic.BaseModel."),
        ("class Input(BaseModel):\n    x: int", "task.Input must have a field items: list[…]."),
        ("def process_batch(items, job): ...", "task.py must define exactly one of process and process_batch."),
        ("def process(job, item): ...", "task.process must be process(item, job) or process(item, job, context)"),
        (
            "class Odd:\n    @classmethod\n    def __get_pydantic_json_schema__(cls, *_): raise ValueError('odd')\n"
            "    @classmethod\n    def __get_pydantic_core_schema__(cls, *_): return {'type': 'any'}\n"
            "class Input(BaseModel):\n    items: list[Odd]",
            "task.Input has no JSON Schema: ValueError: odd",
        ),
    ],
)
def test_what_a_worker_refuses_at_its_start_is_refused_here(source: str, why: str) -> None:
    task = imported("task", f"{BEFORE}\ndef process(item, job): ...\n{source}")
    with pytest.raises(Refused, match="^" + why.replace("(", r"\(").replace(")", r"\)").replace("[", r"\[")):
        schemas(task)


@pytest.mark.parametrize("name", [path.stem for path in sorted((LIBRARY / "tests" / "tasks").glob("[a-z]*.py"))])
def test_each_task_of_the_tests_has_schemas(name: str) -> None:
    if name.endswith("_by_sdk") or name == "unseamed":
        pytest.skip("it replaces parts of the SDK")
    task = importlib.import_module(f"tests.tasks.{name}")
    validator(task).validate({"index": 0, "success": False, "failure": {"type": "ValueError", "message": ""}})


@pytest.mark.parametrize(
    ("name", "items"),
    [
        ("every_fault", [{"name": "a"}, {"nmae": "x"}, *({"name": name} for name in FAULTS)]),
        ("parts", [{"yield": ["a", "b"]}, {"yield": [1, {"a": 2}]}, {"yield": []}, {"yield": [], "then": "raise"}]),
        ("pictures", [{"seeds": [1], "size": 8}, {"seeds": [1, 2, 3], "size": 200}, {}]),
    ],
)
def test_what_a_worker_answers_is_what_the_schema_says(serve: Serve, name: str, items: list[Any]) -> None:
    task = importlib.import_module(f"tests.tasks.{name}")
    validator(task, "input").validate({"items": items[:1], "first_index": 400})
    envelopes = serve(name).runsync(items)["output"]
    assert len(envelopes) == len(items)
    for each in envelopes:
        validator(task).validate(each)


class Classifier:
    def __call__(self, items: list[str], **_: Any) -> list[Any]:
        return [[{"label": "POSITIVE", "score": 0.9}] for _ in items]


def pipeline(prompt: list[str], **_: Any) -> SimpleNamespace:
    return SimpleNamespace(images=[Image.new("RGB", (8, 8)) for _ in prompt])


@pytest.mark.parametrize("point", ["sync", "async", "batch", "images"])
def test_the_results_of_each_starting_point_are_what_its_schema_says(
    point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch", "transformers", "diffusers"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    task = imported("task", (POINTS / point / "task.py").read_text())
    job = json.loads((POINTS / point / "test_input.json").read_text())["input"]
    accepted = validator(task)
    validator(task, "input").validate(job)
    asked = task.Input.model_validate(job)
    task.load()
    vars(task).update(_classify=Classifier(), _pipeline=pipeline)
    if point in ("batch", "images"):
        results = task.process_batch(asked.items, asked)
    elif point == "async":
        results = [asyncio.run(task.process(asked.items[0], asked))]
    else:
        results = [task.process(item, asked) for item in asked.items]
    for result in results:
        accepted.validate(envelope(result))
    wrong = {
        "sync": {"text": "a", "sentiment": "odd", "score": 0.5},
        "images": {"image": "abc", "seed": 1},
    }
    readable = point != "images" or sys.version_info >= (3, 12)  # pydantic reads typing.TypedDict from there on
    if point in wrong and readable:
        assert not accepted.is_valid(envelope(wrong[point]))


def command(folder: Path, *arguments: str, task: str | None = None) -> subprocess.CompletedProcess[str]:
    if task is not None:
        (folder / "task.py").write_text(task)
    line = [sys.executable, "-m", "aggregating_worker", "schema", *arguments]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_prints_one_document_whatever_the_task_prints(tmp_path: Path) -> None:
    loud = """
import os, subprocess, threading, time
from pydantic import BaseModel
print("printed")
os.write(1, b"written\\n")
subprocess.run(["echo", "echoed"], check=True)
threading.Thread(target=time.sleep, args=(600,)).start()
class Input(BaseModel):
    items: list[float]
    limit: float = float("inf")
def load():
    raise SystemExit("it is not loaded")
def process(item, job) -> float: ...
"""
    done = command(tmp_path, task=loud)
    assert done.returncode == 0
    found = json.loads(done.stdout, parse_constant=pytest.fail)
    assert found["envelope"]["$defs"]["Success"]["properties"]["result"] == {"type": "number"}
    assert sorted(done.stderr.splitlines()) == ["echoed", "printed", "written"]
    (tmp_path / "task.py").rename(tmp_path / "other.py")
    assert command(tmp_path, "other").stdout == done.stdout


@pytest.mark.parametrize(
    ("task", "why"),
    [
        (None, "There is no task.py in this folder: run this in a worker's project."),
        ("import nowhere", "task.py cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("raise SystemExit(3)", "task.py cannot be imported: SystemExit: 3"),
        ("1 +", "task.py cannot be imported: SyntaxError: invalid syntax (task.py, line 1)"),
        ("", "task.py must define Input, a subclass of pydantic.BaseModel."),
    ],
)
def test_a_task_that_cannot_be_used_is_a_sentence(tmp_path: Path, task: str | None, why: str) -> None:
    done = command(tmp_path, task=task)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{why}\n")
