"""``aggregating-worker schema``: the JSON Schemas of a job's input and of an envelope, for clients in any language."""

import argparse
import inspect
import io
import os
import sys
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, RootModel, TypeAdapter, create_model
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import PydanticOmit, to_json

from aggregating_worker import before_sdk
from aggregating_worker.outcome.result import describe
from aggregating_worker.process.function import TaskFunction
from aggregating_worker.refusal import Refused
from aggregating_worker.request import MAX_INDEX, Requests
from aggregating_worker.sentence import one_line, reason

FIRST_INDEX = {
    "description": "The number of the first item, where the items are a slice of a longer list.",
    "type": "integer",
    "minimum": 0,
    "maximum": MAX_INDEX,
    "default": 0,
}
LISTS = {list, Sequence, Iterable, Iterator, Generator, AsyncIterable, AsyncIterator, AsyncGenerator}
FILES = (bytes, bytearray, memoryview, io.BytesIO, Path)


class _Sent(BaseModel):
    """What is sent has these fields and no others; those of a task's own types may be of any class."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


class InlineFile(_Sent):
    """A file in a result, in base64."""

    content_type: str
    bytes: NonNegativeInt
    data: str = Field(json_schema_extra={"contentEncoding": "base64"})


class StoredFile(_Sent):
    """A file in a result, in the bucket."""

    content_type: str
    bytes: NonNegativeInt
    url: str = Field(json_schema_extra={"format": "uri"})


class File(RootModel[InlineFile | StoredFile]):
    """A file in a result."""


class Success(_Sent):
    """An item's result."""

    index: NonNegativeInt
    success: Literal[True]
    result: Any


class StoredSuccess(_Sent):
    """An item's result, which is stored as JSON: it did not fit into the response."""

    index: NonNegativeInt
    success: Literal[True]
    result_url: str = Field(json_schema_extra={"format": "uri"})
    bytes: NonNegativeInt


class Reason(_Sent):
    """Why an item has failed: the type of what it raised, a sentence, and what else the task says of it."""

    type: str
    message: str
    details: Any = Field(default_factory=lambda: None)  # it may be left out, and then it has no value


class Failure(_Sent):
    """An item that has failed."""

    index: NonNegativeInt
    success: Literal[False]
    failure: Reason


class Anything(GenerateJsonSchema):
    """Accepts anything where a type has no schema, and names no field twice: generators make a type of each title."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012  # as in the base class

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        """Return the schema of anything."""
        del schema, error_info
        return {}

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Return that a field's name is enough."""
        del schema
        return False


class AsSent(Anything):
    """Describes results as they are sent: with an object for each file, and without the exceptions among them."""

    def generate_inner(self, schema: Any) -> JsonSchemaValue:
        """Return the schema of a part of a result. Raises ``PydanticOmit`` for a choice that is never sent."""
        match schema:
            case {"serialization": {"return_schema": _}}:
                pass  # its author says what it is sent as
            case {"type": "bytes"}:
                schema = File.__pydantic_core_schema__
            # The second pattern is a path's (pydantic 2.14, ``GenerateSchema._path_schema``).
            case {"type": "is-instance", "cls": type() as kind} | {"strict_schema": {"python_schema": {"cls": kind}}}:
                if issubclass(kind, BaseException):
                    raise PydanticOmit
                pillow = sys.modules.get("PIL.Image")
                if issubclass(kind, FILES) or (pillow and issubclass(kind, pillow.Image)):
                    schema = File.__pydantic_core_schema__
        return super().generate_inner(schema)


def schemas(task: ModuleType) -> dict[str, Any]:
    """Return the JSON Schemas (2020-12) of a job's ``input`` and of an ``envelope`` of ``task``, as a caller sees them.

    A result is described where the task's function says what it returns. Raises ``Refused`` for what a worker refuses
    at its start, and for an ``Input`` that cannot be described.
    """
    Requests(task, max_items=1)  # it checks Input
    function = TaskFunction.of(task)
    try:
        accepted = task.Input.model_json_schema(schema_generator=Anything)
    except Exception as error:  # the schemas of a task's types are its own
        raise Refused(f"task.Input has no JSON Schema: {type(error).__name__}: {one_line(str(error))}") from None
    if "first_index" not in task.Input.model_fields:
        accepted.setdefault("properties", {})["first_index"] = FIRST_INDEX
    try:
        envelope = _envelope(_result(function))
    except Exception:
        envelope = _envelope(Any)
    dialect = {"$schema": GenerateJsonSchema.schema_dialect}
    return {"input": {**dialect, **accepted}, "envelope": {**dialect, "title": "Envelope", **envelope}}


def _envelope(result: Any) -> dict[str, Any]:
    success = create_model("Success", __base__=Success, __doc__=Success.__doc__, result=(result, ...))
    one: Any = success | StoredSuccess | Failure
    envelope = TypeAdapter(one).json_schema(mode="serialization", schema_generator=AsSent)
    return {"oneOf": envelope.pop("anyOf"), **envelope}


def _result(function: TaskFunction) -> Any:
    """Return the type of an item's result, as far as the annotation of what ``function`` returns says it."""
    returned = _returned(function.function)
    if not (function.batched or function.in_parts):
        return returned
    each = get_args(returned)[0] if get_origin(returned) in LISTS else Any
    if function.batched or each is str:
        return each
    return str | list[each]  # type: ignore[valid-type]  # a text if all parts are, or if there are none


def _returned(function: Callable[..., Any]) -> Any:
    """Return the annotation of what ``function`` returns, under its decorators; ``Any`` if it has none.

    The other annotations are not looked at: they may name what is imported for a type checker only.
    """
    function = inspect.unwrap(function)
    while isinstance(function, partial):
        function = inspect.unwrap(function.func)
    if not inspect.isroutine(function):
        function = type(function).__call__
    try:
        annotation = SimpleNamespace(__annotations__={"return": function.__annotations__["return"]})
        return get_type_hints(annotation, function.__globals__, include_extras=True)["return"]
    except Exception:
        return Any


def main(argv: Sequence[str]) -> None:
    """Print one JSON document; exit 1 with a sentence if there is no task that can be described."""
    what = "Print one JSON document with the JSON Schemas of a job's input and of an envelope."
    parser = argparse.ArgumentParser(prog="aggregating-worker schema", description=what)
    parser.add_argument("task", nargs="?", default="task", help="the task's module in this folder (default: task)")
    name = parser.parse_args(argv[1:]).task
    before_sdk.end_on_interrupt()
    with os.fdopen(os.dup(1), "wb") as document:
        os.dup2(2, 1)  # what the task prints is no part of the document
        before_sdk.prepare()
        sys.path.insert(0, str(Path.cwd()))
        status = 0
        try:
            document.write(to_json(schemas(_imported(name)), indent=2, inf_nan_mode="strings", fallback=str) + b"\n")
            document.flush()
        except Refused as refusal:
            print(refusal, file=sys.stderr)
            status = 1
        except Exception as error:  # a task's own types, or whoever has closed the pipe
            print(f"The schemas cannot be printed: {type(error).__name__}: {one_line(str(error))}.", file=sys.stderr)
            os._exit(1)
    sys.stdout.flush()
    os._exit(status)  # even if the task has started threads


def _imported(name: str) -> ModuleType:
    try:
        return import_module(name)
    except BaseException as error:  # sys.exit() among them
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise Refused(f"There is no {name}.py in this folder: run this in a worker's project.") from None
        raised = describe(error)
        raise Refused(f"{name}.py cannot be imported: {reason(raised.kind, raised.message)}") from None
