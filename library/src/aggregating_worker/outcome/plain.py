"""What a task returns, made of values that JSON has a form for, with a ``File`` in place of each file in it.

pydantic-core (2.50, ``to_jsonable_python``) knows most types, but says nothing of what is lost on the way: of two keys
that are the same text it keeps one, and NaN in a ``Decimal``, a complex number or a key becomes a text.
"""

import dataclasses
import io
import json
import math
import sys
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping
from datetime import date, timedelta
from decimal import Decimal
from enum import Enum
from itertools import chain
from operator import is_
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from aggregating_worker.outcome.files import File

DEPTH = 255
"""How deep a result is searched; pydantic-core (2.41, ``serializers``) refuses a deeper one."""
PLAIN = frozenset({str, int, float, bool, type(None)})
TEXT = frozenset({str})
SEQUENCES = (list, tuple, set, frozenset, deque)
NO_FORM = "which JSON has no form for"
COMPLEX = f"is a complex number, {NO_FORM}"
RETURNABLE = "cannot be returned: return JSON, models, dataclasses, arrays, or files as bytes, Path or Pillow image"


class NoJson(ValueError):
    """JSON has no form for a value; the text says what it is."""


def plain(value: Any) -> tuple[Any, list[File]]:
    """Return ``value`` with a ``File`` for each file in it, and the files; what has to be changed is copied.

    Looks into containers, models and dataclasses at any depth. Raises ``NoJson``.
    """
    files: list[File] = []
    return _plain(value, files, []), files


def listed(value: Any) -> object:
    """Return a NumPy scalar, an array or a tensor as plain Python, without importing its library.

    Raises ``TypeError`` for any other type, and ``NoJson`` for a time that is none.
    """
    tolist = getattr(value, "tolist", None)
    if not callable(tolist):
        raise TypeError(f"{type(value).__name__} {RETURNABLE}")
    dtype = getattr(value, "dtype", None)
    names = getattr(dtype, "names", None)  # of a structure
    if not names and getattr(dtype, "kind", "") not in ("m", "M"):
        found: Any = tolist()
        if type(found) is not type(value):
            return found
        if getattr(dtype, "kind", "") == "c":
            raise NoJson(COMPLEX)
        return float(found)  # of a ``longdouble``
    if getattr(value, "ndim", 0):
        return [*value]
    return [value[name] for name in names] if names else _time(value)


def _time(value: Any) -> object:
    """Return NumPy's time or duration as Python's, or as an ISO text; NumPy makes a bare number of some."""
    if value != value:
        raise NoJson(f"is NaT, {NO_FORM}")
    kind, _, unit = str(value.dtype).partition("[")
    if kind == "datetime64" or unit.rstrip("]")[-1:] not in ("", "Y", "M"):  # months differ, and no unit is none
        for other in (value, value.astype(f"{kind}[us]")):
            back = other.astype(value.dtype)  # NumPy does not say when a number overflows
            if not isinstance(found := other.tolist(), int) and back.astype("int64") == value.astype("int64"):
                return found
    if kind == "datetime64":
        return str(value)
    raise NoJson(f"is a {value.dtype}, which is no whole number of microseconds: return a number, and say of what")


def _plain(value: Any, files: list[File], path: list[int]) -> Any:
    kind = type(value)
    if kind in PLAIN:
        return value
    if kind in SEQUENCES and PLAIN.issuperset(map(type, value)):
        return value
    if kind is dict and TEXT.issuperset(map(type, value)) and PLAIN.issuperset(map(type, value.values())):
        return value
    if isinstance(value, bytes | bytearray | memoryview | io.BytesIO | Path) or _is_image(value):
        files.append(File(value))
        return files[-1]
    if len(path) > DEPTH or id(value) in path:  # the encoder refuses it
        return value
    path.append(id(value))
    try:
        return _changed(value, files, path)
    finally:
        path.pop()


def _changed(value: Any, files: list[File], path: list[int]) -> Any:
    """Return ``value`` or, if anything in it has to be changed, a copy."""
    if isinstance(value, Mapping):
        found: Any = {_key(key): _plain(inner, files, path) for key, inner in value.items()}
        if len(found) < len(value):
            [(text, _)] = Counter(map(_key, value)).most_common(1)
            raise NoJson(f"has two keys that are the text {json.dumps(text)} in JSON")
        same = isinstance(value, dict) and all(map(is_, [*value, *value.values()], [*found, *found.values()]))
    elif isinstance(value, SEQUENCES):
        found = [_plain(inner, files, path) for inner in value]
        same = all(map(is_, value, found))
    elif (fields := _fields(value)) is not None:
        before = len(files)
        try:
            for inner in fields:
                _plain(inner, files, path)
            same = len(files) == before
        except NoJson:  # unless the model has another form for it
            same = False
        del files[before:]
        # What it serializes to is sent, not its fields.
        found = value if same else _plain(_dumped(value), files, path)
    elif isinstance(value, Generator):  # as pydantic-core has it, which does not look into it
        return _plain([*value], files, path)
    elif isinstance(value, Enum) and not isinstance(value, str | int | float):
        return _plain(value.value, files, path)
    elif isinstance(value, complex):
        raise NoJson(COMPLEX)
    elif isinstance(value, Decimal) and not value.is_finite():
        raise NoJson(f"is {value}, {NO_FORM}")
    elif isinstance(value, date | timedelta) and value != value:
        raise NoJson(f"is NaT, {NO_FORM}")
    elif callable(getattr(value, "tolist", None)):
        return _plain(listed(value), files, path)
    else:
        return value
    return value if same else found


def _key(key: Any) -> Any:
    """Return a key as the text that it is in JSON."""
    if type(key) is str:
        return key
    if callable(getattr(key, "tolist", None)):
        key = listed(key)
    if isinstance(key, Enum):
        return _key(key.value)
    if isinstance(key, tuple):
        key = tuple(map(_key, key))
    if isinstance(key, complex) or (isinstance(key, float | Decimal) and not math.isfinite(key)):
        raise NoJson(f"has the key {key}, {NO_FORM}")
    [text] = to_jsonable_python({key: None})
    return text


def _is_image(value: object) -> bool:
    """Whether it is a Pillow image. If Pillow has not been imported, nothing is."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


def _fields(value: object) -> Iterator[Any] | None:
    if isinstance(value, BaseModel):
        return chain(vars(value).values(), (value.model_extra or {}).values())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return (getattr(value, field.name) for field in dataclasses.fields(value))
    return None


def _dumped(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(by_alias=True)
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def where(value: Any, fails: Callable[[Any], bool]) -> tuple[str, Any]:
    """Return the innermost part of ``value`` that ``fails`` by itself, after how one gets there: ``.embedding[1]``."""
    path, above = "", {id(value)}
    while len(above) <= DEPTH:
        parts = list(_parts(value))
        while len(parts) > 1:
            half = parts[: len(parts) // 2]
            parts = half if fails([part for _, part in half]) else parts[len(half) :]
        if not (parts and fails(parts[0][1])):
            break
        name, value = parts[0]
        path += name
        if id(value) in above:  # it contains itself
            break
        above.add(id(value))
    return path, value


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of ``value``, each after its name there."""
    if _fields(value) is not None:
        value = _dumped(value)
    if isinstance(value, Mapping):
        for key, inner in value.items():
            text = str(key)
            yield f".{text}" if text.isidentifier() else f"[{json.dumps(text)}]", inner
    elif isinstance(value, SEQUENCES) or getattr(value, "ndim", False):
        for place, inner in enumerate(value):
            yield f"[{place}]", inner
