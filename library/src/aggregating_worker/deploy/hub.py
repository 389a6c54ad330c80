"""``aggregating-worker hub``: have the Runpod Hub test the job in ``test_input.json``, and check what it will read.

The fields of its two files are those of Runpod's publishing guide (docs, hub/publishing-guide).
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from aggregating_worker.refusal import faults

HUB = Path(".runpod", "hub.json")
"""What the Hub shows, and the form for whoever deploys it."""
TESTS = Path(".runpod", "tests.json")
"""What the Hub runs before it lists a release."""

Text = Annotated[str, Field(min_length=1)]
Value = str | bool | float
CUDA = r"^[0-9]+\.[0-9]+$"
CudaVersions = list[Annotated[str, Field(pattern=CUDA)]]


class Fields(BaseModel):
    """An object of one of the two files; a field that the guide does not have is a mistake."""

    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class Option(Fields):
    """One of the values that an input offers."""

    label: Text
    value: str


class Input(Fields):
    """A field of the form."""

    name: Text
    type: Literal["string", "huggingface", "number", "boolean"]
    description: str = ""
    default: Value | None = None
    required: bool = False
    advanced: bool = False
    options: list[Option] | None = None
    min: float | None = None
    max: float | None = None
    true_value: str | None = None
    false_value: str | None = None


class Variable(Fields):
    """An environment variable, with its value or with the input that asks for it."""

    key: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    value: str | None = None
    input: Input | None = None

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.value is None) == (self.input is None):
            raise ValueError("should have either a value or an input")
        return self


class Preset(Fields):
    """Values that fill the form together."""

    name: Text
    defaults: dict[str, Value]


class Config(Fields):
    """What the workers run on, and what they are asked to be given."""

    runs_on: Literal["GPU", "CPU"]
    endpoint_type: Literal["LB"] | None = None
    container_disk_in_gb: PositiveInt
    cpu_flavor: Text | None = None
    gpu_count: PositiveInt | None = None
    gpu_ids: Text | None = None
    allowed_cuda_versions: CudaVersions = []
    env: list[Variable] = []
    presets: list[Preset] = []

    @model_validator(mode="after")
    def _names_the_machine(self) -> Self:
        gpu = {"gpuIds": self.gpu_ids, "gpuCount": self.gpu_count}
        needed = gpu if self.runs_on == "GPU" else {"cpuFlavor": self.cpu_flavor}
        if missing := [name for name, given in needed.items() if given is None]:
            raise ValueError(f"says that it runs on {self.runs_on}, and so needs {' and '.join(missing)}")
        return self


class Hub(Fields):
    """``hub.json``."""

    title: Text
    description: Text
    type: Literal["serverless"]
    category: Literal["audio", "embedding", "language", "video", "image"]
    icon_url: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None
    config: Config


class Case(Fields):
    """A job that must succeed; ``timeout`` is in milliseconds."""

    name: Text
    input: dict[str, Any]
    timeout: PositiveInt | None = None


class CasesConfig(Fields):
    """What the tests run on."""

    gpu_type_id: Text | None = None
    gpu_count: PositiveInt | None = None
    cpu_flavor: Text | None = None
    env: list[Variable] = []
    allowed_cuda_versions: CudaVersions = []

    @model_validator(mode="after")
    def _names_one_machine(self) -> Self:
        if (self.gpu_type_id is None) == (self.cpu_flavor is None):
            raise ValueError("should have either a gpuTypeId or a cpuFlavor")
        return self


class Cases(Fields):
    """``tests.json``."""

    tests: Annotated[list[Case], Field(min_length=1)]
    config: CasesConfig


def main(argv: list[str]) -> None:
    """Write the input of ``test_input.json`` into the first test of ``.runpod/tests.json``, and check both files.

    The rest of the file stays as it is. What is wrong is a sentence, with status 1, and changes nothing.
    """
    what = "Write the job in test_input.json into .runpod/tests.json, and check what the Runpod Hub will read."
    argparse.ArgumentParser(prog="aggregating-worker hub", description=what).parse_args(argv[1:])
    job, tests, hub = _read(Path("test_input.json")), _read(TESTS), _read(HUB)
    try:
        first, *others = tests["tests"]
        tests["tests"] = [{**first, "input": job["input"]}, *others]
    except (KeyError, ValueError, TypeError):
        sys.exit(f'test_input.json should have an "input", and {TESTS} "tests": see Runpod\'s publishing guide.')
    for file, fields, content in ((HUB, Hub, hub), (TESTS, Cases, tests)):
        try:
            fields.model_validate(content)
        except ValidationError as error:
            sys.exit(f"{file} is not as Runpod's publishing guide has it: {faults(error)}.")
    _write(TESTS, tests)
    print(f"{TESTS} tests the job in test_input.json; its fields, and those of {HUB}, are as the Hub's guide has them.")


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        sys.exit(f"{file} cannot be read: {error.strerror}.")
    except (ValueError, RecursionError) as error:
        sys.exit(f"{file} is not JSON: {error}.")


def _write(file: Path, content: Any) -> None:
    """Replace ``file``, or leave it as it is."""
    try:
        text = f"{json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)}\n".encode()
    except ValueError:  # half a surrogate pair, NaN, Infinity
        sys.exit("test_input.json has a number or a text that is no JSON, such as NaN or half a surrogate pair.")
    part = file.with_suffix(".part")
    try:
        part.write_bytes(text)
        part.replace(file)
    except OSError as error:
        sys.exit(f"{file} cannot be written: {error.strerror}.")
