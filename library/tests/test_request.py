"""What ``task.Input`` says of an item costs that item; what it says of anything else refuses the job."""

import dataclasses
import tracemalloc
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Annotated, Any, Literal, Optional, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasPath,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    HttpUrl,
    OnErrorOmit,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from aggregating_worker.refusal import Refused
from aggregating_worker.request import Invalid, Request, Requests


def checked(model: type[BaseModel], request: Any, **task: Any) -> Request:
    given: Any = SimpleNamespace(Input=model, **task)
    return Requests(given, 10_000).check(request, "job")


def refusal(model: type[BaseModel], request: Any) -> str:
    with pytest.raises(Refused) as caught:
        checked(model, request)
    return str(caught.value)


def whys(model: type[BaseModel], items: list[Any], **options: Any) -> list[str]:
    """Return why each item is not accepted; an empty text for those that are."""
    found = checked(model, {"items": items, **options}).items
    return [item.why if isinstance(item, Invalid) else "" for item in found]


class Prompt(BaseModel):
    model_config = ConfigDict(extra="forbid")

    prompt: str
    max_tokens: int = Field(1, ge=1)


@dataclasses.dataclass
class Point:
    x: int
    y: tuple[int, str]


class Nested(BaseModel):
    name: str = Field(alias="called")
    inner: list[Prompt] = []


def of(item: Any) -> type[BaseModel]:
    """Return an ``Input`` whose items are of the type ``item``, and which has an option."""
    return create_model("Input", items=(list[item], ...), steps=(int, 20))


@pytest.mark.parametrize(
    ("kind", "good", "bad", "why"),
    [
        (Prompt, {"prompt": "a"}, {"promt": "x"}, "prompt is missing; there is no field promt"),
        (Prompt, {"prompt": "a"}, {"prompt": "a", "max_tokens": 0}, "max_tokens should be greater than or equal to 1"),
        (Prompt, {"prompt": "a"}, None, "should be a valid dictionary or instance of Prompt"),
        (HttpUrl, "https://a.example", "no url", "should be a valid URL, relative URL without a base"),
        (Point, {"x": 1, "y": [1, "a"]}, {"x": 1, "y": [1]}, "y[1] is missing"),
        (Nested, {"called": "a"}, {"called": "a", "inner": [{}]}, "inner[0].prompt is missing"),
        (Nested, {"called": "a"}, {"name": "a"}, "called is missing"),
        (tuple[int, str], [1, "a"], [], "[0] is missing; [1] is missing"),
        (Prompt | Point, {"prompt": "a"}, {}, "Prompt.prompt is missing; Point.x is missing; Point.y is missing"),
        (Annotated[int, Field(multiple_of=8)], 8, 9, "should be a multiple of 8"),
    ],
)
def test_a_faulty_item_among_a_hundred_is_told_by_itself(kind: Any, good: Any, bad: Any, why: str) -> None:
    items = [good] * 60 + [bad] + [good] * 39
    assert whys(of(kind), items) == [""] * 60 + [why] + [""] * 39
    assert whys(of(kind), [bad]) == [why]


leaves: st.SearchStrategy[Any] = st.sampled_from(
    [
        int,
        str,
        bool,
        float,
        HttpUrl,
        Annotated[int, Field(ge=0, le=5)],
        Annotated[str, Field(max_length=2)],
        Literal["a", 1],
        Annotated[int, AfterValidator(lambda value: 6 // value)],
        Annotated[str, BeforeValidator(lambda value: value["a"])],
        Prompt,
        Point,
        Nested,
    ]
)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def model(fields: dict[str, Any], extra: str, alias: bool) -> type[BaseModel]:
        given: Any = {name: (kind, Field(alias=name.upper()) if alias else ...) for name, kind in fields.items()}
        return create_model("Model", __config__=ConfigDict(extra=extra), **given)  # type: ignore[typeddict-item]

    return st.one_of(
        st.builds(lambda kind: list[kind], inner),  # type: ignore[valid-type]
        st.builds(lambda kind: Optional[kind], inner),  # noqa: UP045  # a value, which | does not take
        st.builds(lambda one, other: Union[one, other], inner, inner),  # noqa: UP007
        st.builds(lambda kind: dict[str, kind], inner),  # type: ignore[valid-type]
        st.builds(lambda one, other: tuple[one, other], inner, inner),  # type: ignore[valid-type]
        st.builds(
            model,
            st.dictionaries(st.sampled_from("abc"), inner, min_size=1),
            st.sampled_from(["forbid", "ignore", "allow"]),
            st.booleans(),
        ),
    )


kinds = st.recursive(leaves, containers, max_leaves=4)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 9) | st.sampled_from(["", "a", "https://a.example", "long"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["a", "b", "c", "A", "prompt", "x", "y", "called", "inner"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@given(kinds, st.lists(values, min_size=1, max_size=8))
def test_an_item_is_accepted_as_it_would_be_alone(kind: Any, items: list[Any]) -> None:
    model = of(kind)
    found = checked(model, {"items": items, "steps": 7})
    assert len(found.items) == len(items)
    for item, accepted in zip(items, found.items, strict=True):
        try:
            alone: Any = model.model_validate({"items": [item]}).items[0]  # type: ignore[attr-defined]
        except Exception:
            assert isinstance(accepted, Invalid)
            assert accepted.why
            assert "No items" not in accepted.why
        else:
            assert accepted == alone
            assert type(accepted) is type(alone)


class Whole(BaseModel):
    """It has something to say of its list as a whole, and of its options."""

    model_config = ConfigDict(extra="forbid")

    items: Annotated[list[Prompt], Field(min_length=2, max_length=4)]
    seen: int = 0
    width: int = 8

    @field_validator("items", mode="before")
    @classmethod
    def _of_text(cls, items: Any) -> Any:
        return [{"prompt": item} if isinstance(item, str) else item for item in items]

    @field_validator("items")
    @classmethod
    def _distinct(cls, items: list[Prompt]) -> list[Prompt]:
        if len({item.prompt for item in items}) < len(items):
            raise ValueError("prompts must differ")
        return items

    @model_validator(mode="after")
    def _count(self) -> "Whole":
        if not self.items:
            raise ValueError("there is nothing to do")
        self.seen = len(self.items)
        return self


def test_what_is_said_of_all_items_counts_them_all_and_sees_the_valid_ones() -> None:
    found = checked(Whole, {"items": ["a", {}, "b"]})
    assert [type(item) for item in found.items] == [Prompt, Invalid, Prompt]
    assert isinstance(found.options, Whole)
    assert (found.options.seen, type(found.options)) == (2, Whole)
    assert checked(Whole, {"items": ["a", 3]}).items[0] == Prompt(prompt="a", max_tokens=1)


def test_what_is_said_of_all_items_refuses_the_job() -> None:
    assert "at least 2 items" in refusal(Whole, {"items": [{}]})
    assert "at most 4 items" in refusal(Whole, {"items": [{}, "a", "b", "c", "d"]})
    assert refusal(Whole, {"items": ["a", {}, "a"]}) == "The job's input cannot be used: items prompts must differ."


def test_where_no_item_is_left_only_the_options_count() -> None:
    assert all(isinstance(item, Invalid) for item in checked(Whole, {"items": [{}, 3]}).items)
    assert "width" in refusal(Whole, {"items": [{}, 3], "width": "wide"})
    assert "there is no field height" in refusal(Whole, {"items": [{}, 3], "height": 1})


def test_a_fault_of_an_option_refuses_the_job_and_names_no_item() -> None:
    assert refusal(of(Prompt), {"items": [{}], "steps": "many"}).startswith("The job's input cannot be used: steps")


@pytest.mark.parametrize(
    "request_", [{}, {"items": []}, {"items": None}, {"steps": 3}, '{"items": []}', {"items": [], "steps": 3}]
)
def test_only_what_has_no_items_is_said_to_have_none(request_: Any) -> None:
    assert refusal(of(Prompt), request_) == "No items provided"


class Aliased(BaseModel):
    items: list[int] = Field(validation_alias=AliasChoices("numbers", AliasPath("data", "numbers")))


@pytest.mark.parametrize("missing", [{}, {"data": {}}, {"numbers": []}, {"numbers": None}])
def test_that_is_so_under_any_name(missing: Any) -> None:
    assert refusal(Aliased, missing) == "No items provided"
    assert checked(Aliased, {"data": {"numbers": [1, "x"]}}).items[0] == 1


class Recursive(BaseModel):
    items: "list[Recursive] | None"
    depth: int = 0


class Omitting(BaseModel):
    items: list[OnErrorOmit[int]]


class Stamped(BaseModel):
    """An item's validator may look at an option."""

    most: int
    items: list[Annotated[int, AfterValidator(lambda value: value)]]

    @field_validator("items", mode="wrap")
    @classmethod
    def _wrap(cls, items: Any, accept: Callable[[Any], Any]) -> Any:
        return accept(items)


def test_other_forms_of_lists() -> None:
    nested = {"items": [{"items": None}, {"items": [{"items": None, "depth": "deep"}]}, {"items": None, "depth": 2}]}
    assert [isinstance(item, Invalid) for item in checked(Recursive, nested).items] == [False, True, False]
    assert checked(Omitting, {"items": [1, "x", 2]}).items == (1, 2)
    assert checked(Stamped, {"most": 3, "items": [1, "x"]}).items[0] == 1


def test_a_validator_that_fails_costs_its_own_item(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(value: Any) -> Any:
        raise {"key": KeyError("no"), "exit": SystemExit(3)}.get(value) or ValueError("no such thing")

    model = of(Annotated[str, AfterValidator(broken)] | int)
    assert whys(model, [1, "key", "exit", 2, "other"])[:4] == ["", *2 * ["task.Input failed on it"], ""]
    assert "KeyError: 'no'" in capsys.readouterr().out


@pytest.mark.parametrize("given", ['{"items": [1]}', ' {"items":\n[1]}'])
def test_the_text_of_an_object_is_the_object(given: str) -> None:
    assert checked(of(int), given).items == (1,)


@pytest.mark.parametrize("given", ["", "[1]", "{", 3, None, "1" * 5_000, "[" * 100_000, '{"items": [1]} {}'])
def test_another_input_is_refused(given: Any) -> None:
    assert refusal(of(int), given) == 'The job\'s input must be an object: {"items": […]}.'


def test_the_tasks_model_is_left_as_it_was() -> None:
    model = of(Prompt)
    checked(model, {"items": [{"prompt": "a"}, {}]})
    with pytest.raises(ValidationError) as caught:
        model.model_validate({"items": [{}, {}]})
    assert caught.value.error_count() == 2
    assert model.__pydantic_complete__


def union(count: int) -> Any:
    fields: Any = [{"kind": (Literal[number], ...), "a": (int, ...)} for number in range(count)]
    made = [create_model(f"M{number}", **each) for number, each in enumerate(fields)]
    return Union[tuple(made)]  # noqa: UP007


def test_faults_by_the_dozen_are_not_gathered() -> None:
    """10,000 of these items once took 1.7 GB: the faults of all were kept until the last was found."""
    model = of(union(20))
    tracemalloc.start()
    try:
        found = checked(model, {"items": [{"kind": 99, "a": "x"}] * 2_000})
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert all(isinstance(item, Invalid) for item in found.items)
    assert most < 5_000_000


class Doubling(BaseModel):
    """Its validator changes what it is given: a second time, it would find something else."""

    x: int

    @model_validator(mode="before")
    @classmethod
    def _old(cls, given: Any) -> Any:
        given["x"] = given.pop("params")["x"] * 2 if "params" in given else given["x"] * 2
        return given


class Counting(BaseModel):
    items: list[Annotated[int, AfterValidator(lambda value: seen.append(value) or value)]]
    steps: int = 1

    @model_validator(mode="before")
    @classmethod
    def _old(cls, given: Any) -> Any:
        return {**given, "steps": given.pop("n")} if "n" in given else given


seen: list[int] = []


def test_the_tasks_own_validators_see_each_item_once() -> None:
    found = checked(of(Doubling), {"items": [{"params": {"x": 5}}, {"x": 1}, {"y": 1}]}).items
    assert [item.x if isinstance(item, Doubling) else None for item in found] == [10, 2, None]
    seen.clear()
    assert checked(Counting, {"items": [1, "a", 2], "n": 4}).options.steps == 4  # type: ignore[union-attr]
    assert seen == [1, 2]


class Bounded(BaseModel):
    """What it says of its items depends on an option, which is declared before them."""

    most: int = 3
    items: list[Annotated[int, AfterValidator(lambda value: value)]]

    @field_validator("items")
    @classmethod
    def _sum(cls, items: list[int], info: ValidationInfo) -> list[int]:
        if sum(items) > info.data["most"]:
            raise ValueError("too much")
        return items


def test_fields_are_checked_in_their_order() -> None:
    assert checked(Bounded, {"items": [1, 2, "a"]}).items[:2] == (1, 2)
    assert refusal(Bounded, {"items": [1, 2], "most": 2}).endswith("items too much.")
    assert [*checked(Bounded, {"items": [1]}).options.model_dump()] == ["most", "items"]  # type: ignore[union-attr]


class Made(BaseModel):
    items: list[int]
    _count: int = PrivateAttr(0)

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self._count = len(self.items)


class Ordered(BaseModel):
    items: list[int]

    @field_validator("items")
    @classmethod
    def _in_order(cls, items: list[int]) -> list[int]:
        if items[0] > items[-1]:
            raise ValueError("order")
        return items


class Halved(BaseModel):
    items: list[int]

    @field_validator("items", mode="wrap")
    @classmethod
    def _by_halves(cls, items: Any, accept: Callable[[Any], Any]) -> Any:
        return accept(items[:1]) + accept(items[1:])


class Early(BaseModel):
    items: Annotated[list[int], BeforeValidator(lambda items: items), Field(min_length=2, max_length=3)]


class Sequenced(BaseModel):
    items: Sequence[int]


@pytest.mark.parametrize("model", [Made, Halved, Early, Sequenced])
def test_one_that_is_not_accepted_keeps_its_place(model: type[BaseModel]) -> None:
    found = checked(model, {"items": [1, "a", 2]}).items
    assert [item if isinstance(item, int) else None for item in found] == [1, None, 2]
    assert type(checked(model, {"items": [1, 2]}).options) is model


def test_a_length_counts_all_items_wherever_it_is_checked() -> None:
    assert len(checked(Early, {"items": [1, "a"]}).items) == 2
    assert "at most 3 items" in refusal(Early, {"items": [1, 2, 3, "a"]})


def test_a_validator_of_all_items_has_nothing_to_say_where_none_is_left() -> None:
    assert all(isinstance(item, Invalid) for item in checked(Ordered, {"items": ["a", "b"]}).items)
    assert refusal(Ordered, {"items": [2, 1, "a"]}).endswith("items order.")


def test_an_item_with_a_million_faults_costs_no_more_than_its_first() -> None:
    class Deep(BaseModel):
        x: list[int]
        y: set[int] = set()

    tracemalloc.start()
    try:
        found = whys(of(Deep), [{"x": ["a"] * 200_000}] * 3 + [{"x": [], "y": ["a"] * 200_000}])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert {why.partition("[")[0] for why in found} == {"x", "y"}
    assert most < 30_000_000
