"""A job's request: what is wrong with one of its items costs that item, and anything else refuses the job."""

import inspect
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from pydantic import AliasChoices, AliasPath, BaseModel, ValidationError
from pydantic_core import (
    CoreSchema,
    ErrorDetails,
    PydanticOmit,
    PydanticUseDefault,
    core_schema,
)

from aggregating_worker import log
from aggregating_worker.outcome.result import describe
from aggregating_worker.refusal import Refused, faults
from aggregating_worker.validator import Validator

MAX_INDEX = 10**12
NO_ITEMS = "No items provided"
NO_OBJECT = 'The job\'s input must be an object: {"items": […]}.'
UNUSABLE = "The job's input cannot be used"


class Unreadable(str):
    """In place of a job's ``input`` that cannot be read: why, in a sentence for its caller."""


@dataclass(frozen=True, slots=True)
class Invalid:
    """In place of an item that ``task.Input`` does not accept: why, in a sentence for its caller."""

    why: str


@dataclass(frozen=True, slots=True)
class Request:
    """A job's checked request; ``items`` has an ``Invalid`` for each that is not accepted."""

    items: tuple[object, ...]
    options: BaseModel | None
    """The input as it was accepted. None where no item was, so that no call needs it."""
    first_index: int
    bare: bool
    """Whether it came in another form than the list's, and the answer is to be the only item's result as it is."""


class Requests:
    """Checks requests for ``task``, of at most ``max_items`` items. Raises ``Refused`` if that cannot be done."""

    def __init__(self, task: ModuleType, max_items: int) -> None:
        if not (isinstance(getattr(task, "Input", None), type) and issubclass(task.Input, BaseModel)):
            raise Refused("task.py must define Input, a subclass of pydantic.BaseModel.")
        if "items" not in task.Input.model_fields:
            raise Refused("task.Input must have a field items: list[…].")
        self._single: Callable[[dict[str, Any]], object] | None = getattr(task, "single", None)
        if self._single and (not callable(self._single) or inspect.iscoroutinefunction(self._single)):
            raise Refused("task.single must be a plain function: single(request) -> dict | None.")
        self._fields = task.Input.model_fields
        self._max_items = max_items
        self._each = Validator(task.Input, self._keep_each)
        self._whole = (
            None if self._each.runs_code else Validator(task.Input, lambda items: {**items, "fail_fast": True})
        )
        self._job_id = ""
        self._items: list[object] = []
        """The items of the request that is being checked, once each of them was looked at."""

    def check(self, given: object, job_id: str) -> Request:
        """Return the request in a job's ``input``; raise ``Refused`` if the job cannot start.

        An object or its JSON text is taken. Every request may have a field ``first_index``, which numbers a slice of a
        longer list; ``task.Input`` need not have it.
        """
        self._job_id, self._items = job_id, []
        request = _object(given)
        listed = self._in_list_form(request)
        request = request if listed is None else listed
        first = request.get("first_index", 0)
        if type(first) is not int or not 0 <= first <= MAX_INDEX:
            raise Refused(f"The job's first_index must be a whole number from 0 to {MAX_INDEX}.")
        if "first_index" not in self._fields:
            request = {name: value for name, value in request.items() if name != "first_index"}
        self._check_count(request.get("items"))  # before each item is checked, which takes time
        options, items = self._accepted(request)
        self._items = []
        if listed is not None and len(items) != 1:
            raise Refused(f"task.single must return a request with one item, not {len(items)}.")
        if not items:
            raise Refused(NO_ITEMS)
        self._check_count(items)
        return Request(tuple(items), options, first, listed is not None)

    def _in_list_form(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Return what ``task.single`` makes of a request; None if that is in list form."""
        if not self._single:
            return None
        try:
            listed = self._single(dict(request))
        except BaseException as error:  # it is the task's code; it must not end the worker
            raised = describe(error)
            log.error("task.single failed on a job", self._job_id, raised.trace)
            why = raised.message if isinstance(error, ValueError | AssertionError) else "task.single failed on it"
            raise Refused(f"{UNUSABLE}: {why.rstrip('.')}.") from None
        if not (listed is None or isinstance(listed, dict)):
            raise Refused(f"task.single must return a dict or None, not {type(listed).__name__}.")
        return listed

    def _accepted(self, request: dict[str, Any]) -> tuple[BaseModel | None, list[object]]:
        """Return the input, and the items with an ``Invalid`` for each that is not accepted."""
        try:
            options = self._validated(request)
        except BaseException as error:  # a validator is the task's code; it must not end the worker
            found = error.errors(include_url=False, include_context=False) if isinstance(error, ValidationError) else []
            if any(map(self._says_no_items, found)):
                return None, []
            none_left = self._items and all(isinstance(item, Invalid) for item in self._items)
            if none_left and not any(map(self._is_an_options, found)):
                return None, self._items  # what says something of all items has none to speak of
            if isinstance(error, ValidationError):
                raise Refused(f"{UNUSABLE}: {faults(error)}.") from None
            log.error("task.Input failed on a job", self._job_id, describe(error).trace)
            raise Refused(f"{UNUSABLE}: task.Input failed on it.") from None
        accepted = options.items  # type: ignore[attr-defined]
        if not isinstance(accepted, list):
            raise Refused("task.Input.items must be a list.")
        items = list(accepted)  # a copy: the task may change its own
        for place, item in enumerate(self._items):
            if isinstance(item, Invalid):
                items.insert(place, item)
        return options, items

    def _validated(self, request: dict[str, Any]) -> BaseModel:
        """Return the input: all at once if that goes well, else item by item, which takes twice as long.

        The task's own validators run once for each item: they may change what they are given, or count.
        """
        if self._whole:
            with suppress(ValidationError):
                return self._whole.validate(request)
        return self._each.validate(request)

    def _keep_each(self, items: CoreSchema) -> CoreSchema:
        """Have a list keep an ``Invalid`` for each item that is not accepted, and hand on the others."""

        def keep(item: object, accept: core_schema.ValidatorFunctionWrapHandler) -> object:
            try:
                return accept(item)
            except (PydanticOmit, PydanticUseDefault):
                raise
            except ValidationError as error:
                return Invalid(faults(error))
            except BaseException as error:  # a validator is the task's code; it must not end the worker
                log.error("task.Input failed on an item", self._job_id, describe(error).trace)
                return Invalid("task.Input failed on it")

        def hand_on(items: list[object]) -> list[object]:
            self._items += items
            return [item for item in items if not isinstance(item, Invalid)]

        each = core_schema.no_info_wrap_validator_function(keep, items.get("items_schema") or core_schema.any_schema())
        listed: Any = {**items, "items_schema": each, "fail_fast": False}
        return core_schema.no_info_after_validator_function(hand_on, listed)

    def _is_an_options(self, fault: ErrorDetails) -> bool:
        """Whether ``fault`` is an option's, and not that of the items or of the request as a whole."""
        names = {"items", *(path[0] for path in self._paths())}
        return bool(fault["loc"]) and fault["loc"][0] not in names

    def _says_no_items(self, fault: ErrorDetails) -> bool:
        """Whether ``fault`` says that there are no items, under a name that ``task.Input`` has for them."""
        ours = fault["loc"] in {("items",), *self._paths()}
        return ours and (fault["type"] == "missing" or fault["input"] in (None, []))

    def _paths(self) -> list[tuple[int | str, ...]]:
        field = self._fields["items"]
        alias = field.validation_alias
        choices = alias.choices if isinstance(alias, AliasChoices) else [alias, field.alias]
        return [tuple(each.path) if isinstance(each, AliasPath) else (each,) for each in choices if each]

    def _check_count(self, items: object) -> None:
        if isinstance(items, list) and len(items) > self._max_items:
            raise Refused(f"{len(items)} items are too many for one job: send at most {self._max_items}.")


def _object(given: object) -> dict[str, Any]:
    if isinstance(given, Unreadable):
        raise Refused(given)
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            raise Refused(NO_OBJECT) from None
    if not isinstance(given, dict):
        raise Refused(NO_OBJECT)
    return given
