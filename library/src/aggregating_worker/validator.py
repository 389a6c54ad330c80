"""A model's validator, with another one for its list of items: made of its schema (``pydantic_core.core_schema``)."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import SchemaError, SchemaValidator

from aggregating_worker import log

NO_SCHEMAS = ("cls", "config", "default", "expected", "metadata", "serialization")
"""Members of a schema in which there are no others for validating."""
LENGTHS = {"minItems": "min_length", "maxItems": "max_length"}
"""How pydantic (2.14) notes a check of a list's length that is not in the list's own schema."""
Change = Callable[[Any], Any]


class Validator:
    """Validates as ``model`` does, but for its list of items, whose schema goes through ``change``.

    Where the items are something else than a list, nothing changes. Of a list, the first fault is told: there may be a
    million.
    """

    def __init__(self, model: type[BaseModel], change: Change = lambda items: items) -> None:
        model.model_rebuild()  # if it refers to what was not defined yet
        schema: Any = _fail_fast(model.__pydantic_core_schema__)
        nodes = [*_nodes(schema)]
        self.runs_code = any(node.get("custom_init") or str(node.get("type")).startswith("function-") for node in nodes)
        """Whether validating runs code that is not pydantic-core's."""
        self._model = model
        self._validator: Any = model.__pydantic_validator__
        definitions = {each["ref"]: each for each in schema.get("definitions", ())}
        if not (changed := _changed(schema, change, definitions, within=False)):
            return
        models = {node["cls"] for node in nodes if isinstance(node.get("cls"), type)}
        complete = [each for each in models if each.__dict__.get("__pydantic_complete__")]
        try:
            for each in complete:  # else its own validator is used
                each.__pydantic_complete__ = False
            self._validator = SchemaValidator(changed)
        except SchemaError as error:  # a form of schema that this does not know
            log.warning(f"task.Input is checked as a whole: {error}")
        finally:
            for each in complete:
                each.__pydantic_complete__ = True

    def validate(self, request: Mapping[str, Any]) -> BaseModel:
        """Return the input. Raises ``ValidationError``, and what the model's own validators raise."""
        options: BaseModel
        if not self._model.__pydantic_custom_init__:
            options = self._validator.validate_python(request)
            return options
        own, self._model.__pydantic_validator__ = self._model.__pydantic_validator__, self._validator
        try:  # its ``__init__`` takes the class's validator
            options = self._validator.validate_python(request)
        finally:
            self._model.__pydantic_validator__ = own
        return options


def _fail_fast(schema: Any) -> Any:
    """Return ``schema`` with every list and set in it stopping at its first fault."""
    if isinstance(schema, list | tuple):
        return type(schema)(map(_fail_fast, schema))
    if not isinstance(schema, dict):
        return schema
    made = {name: value if name in NO_SCHEMAS else _fail_fast(value) for name, value in schema.items()}
    return {**made, "fail_fast": True} if made.get("type") in ("list", "set", "frozenset") else made


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield ``schema`` and every schema in it."""
    if isinstance(schema, dict):
        yield schema
        schema = [value for name, value in schema.items() if name not in NO_SCHEMAS]
    if isinstance(schema, list | tuple):
        for each in schema:
            yield from _nodes(each)


def _changed(schema: Any, change: Change, definitions: Mapping[str, Any], *, within: bool) -> Any:
    """Return ``schema`` with ``change`` made to the list in its field ``items``; None if there is none.

    ``within`` that field, the list may have validators around it, be optional, or be one of several choices.
    """

    def inner(schema: Any, change: Change = change, *, within: bool = within) -> Any:
        return _changed(schema, change, definitions, within=within)

    match schema:
        case {"type": "list"} if within:
            return change(schema)
        case {"type": "model-fields", "fields": {"items": items}} if not within:
            found = inner(items, within=True)
            return found and {**schema, "fields": {**schema["fields"], "items": found}}
        case {"type": "definition-ref", "schema_ref": ref}:
            return inner({name: value for name, value in definitions[ref].items() if name != "ref"})
        case {"schema": around, "metadata": {"pydantic_js_updates": dict(said)}} if (
            within and said.keys() <= LENGTHS.keys()
        ):
            bounds = {LENGTHS[name]: most for name, most in said.items()}  # the length is that of all items
            return inner(around, lambda items: change({**items, **bounds}))
    for name in ("steps", "choices"):
        if name in schema:
            found = [inner(each[0] if isinstance(each, tuple) else each) for each in schema[name]]
            if sum(map(bool, found)) == 1:
                return {**schema, name: [new or old for new, old in zip(found, schema[name], strict=True)]}
    for name in ("schema", "python_schema", "lax_schema"):
        if name in schema:
            found = inner(schema[name])
            return found and {**schema, name: found}
    return None
