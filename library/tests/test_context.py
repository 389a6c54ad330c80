"""What a task has beside its item: its context, the log, its own defaults, a request for a new worker."""

import asyncio
import contextvars
import functools
import json
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from aggregating_worker.context import Where, in_call
from aggregating_worker.job import JobRunner
from aggregating_worker.process.function import kind
from aggregating_worker.process.log import TaskLog
from aggregating_worker.refusal import Refused
from aggregating_worker.settings import read_settings
from tests.conftest import Serve
from tests.engine import runner


@pytest.mark.parametrize("task", ["contextual", "contextual_batch"])
def test_each_item_knows_its_place_and_no_credential(shared: Serve, task: str) -> None:
    caller = shared(task)
    job = {"input": {"items": ["a", "b"], "first_index": 40}, "s3Config": {"accessSecret": "not for the task"}}
    with ThreadPoolExecutor(8) as callers:
        states = list(callers.map(lambda _: caller.post("/runsync", json=job).json(), range(8)))
    for state in states:
        assert [envelope["result"] for envelope in state["output"]] == [
            {"job_id": state["id"], "index": index, "keys": ["id", "input"]} for index in (40, 41)
        ]


def test_what_a_task_logs_is_in_the_log_under_its_job_and_item(shared: Serve) -> None:
    caller = shared("contextual")
    state = caller.runsync(["a", "b"])
    lines = [json.loads(line) for line in caller.log.read_text().splitlines() if line.startswith("{")]
    mine = [(line["level"], line["message"]) for line in lines if line["requestId"] == state["id"]]
    assert ("INFO", "Item 0: seen a") in mine
    assert ("INFO", "Item 1: seen b") in mine
    assert "not seen" not in caller.log.read_text()


def test_a_task_that_closes_standard_output_costs_no_job_and_no_line_of_the_log(serve: Serve) -> None:
    caller = serve("hostile")
    for items, counts in ((["close standard output", 1], "2 items, 0 failed"), ([2], "1 item, 0 failed")):
        state = caller.runsync(items)
        assert state["status"] == "COMPLETED"
        caller.wait_for_log(state["id"], counts)


@pytest.mark.parametrize(
    ("level", "name"),
    [
        (logging.DEBUG, "DEBUG"),
        (logging.INFO, "INFO"),
        (logging.WARNING, "WARN"),
        (logging.ERROR, "ERROR"),
        (logging.CRITICAL, "ERROR"),
    ],
)
def test_a_line_has_the_level_of_the_sdks_log_and_the_item_that_it_is_of(level: int, name: str) -> None:
    lines: list[tuple[Where, str, str]] = []
    log = TaskLog(lambda *line: lines.append(line))
    record = logging.LogRecord("task", level, "task.py", 1, "%d files", (2,), None)
    log.emit(record)
    mine = Where(7, "job", 3)
    context = contextvars.copy_context()
    context.run(in_call.set, mine)
    context.run(log.emit, record)
    assert lines == [(Where(), name, "2 files"), (mine, name, "Item 3: 2 files")]


def test_the_log_takes_the_place_of_the_sdks_handler_and_leaves_the_tasks_own(monkeypatch: pytest.MonkeyPatch) -> None:
    own = logging.FileHandler(os.devnull)
    before = [logging.StreamHandler(), own, TaskLog(lambda *_: None)]
    monkeypatch.setattr(logging.root, "handlers", before)
    (log := TaskLog(lambda *_: None)).install()
    assert logging.root.handlers == [own, log]
    own.close()


def test_a_line_whose_arguments_do_not_fit_is_in_the_log_too() -> None:
    lines: list[tuple[str, str]] = []
    log = TaskLog(lambda where, level, message: lines.append((level, message)))
    log.emit(logging.LogRecord("task", logging.WARNING, "task.py", 1, "%d files", ("many",), None))
    assert lines == [("WARN", "'%d files' ('many',)")]


def test_a_constant_of_a_settings_name_is_its_default_and_the_environment_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task: Any = SimpleNamespace(ITEM_CONCURRENCY=1, BATCH_SIZE=8)
    monkeypatch.delenv("ITEM_CONCURRENCY", raising=False)
    monkeypatch.setenv("BATCH_SIZE", "4")
    settings = read_settings(task)
    assert (settings.item_concurrency, settings.batch_size) == (1, 4)
    with pytest.raises(Refused, match=r"^Check task\.py: ITEM_CONCURRENCY"):
        read_settings(SimpleNamespace(ITEM_CONCURRENCY=0))  # type: ignore[arg-type]


class Input(BaseModel):
    items: list[int]


def worker(**functions: Callable[..., Any]) -> JobRunner:
    task: Any = SimpleNamespace(Input=Input, load=lambda: None, **functions)
    return runner(task)


@pytest.mark.parametrize(
    "process",
    [
        lambda item, job: item,
        lambda item, job, context: item,
        lambda item, job, retries=3: item,
        lambda *arguments: arguments[0],
        functools.partial(lambda model, item, job: item, "model"),
    ],
)
def test_a_function_that_takes_an_item_and_its_job_is_taken(process: Callable[..., Any]) -> None:
    worker(process=process)


@pytest.mark.parametrize(
    ("name", "function", "shown"),
    [
        ("process", lambda item: item, "not process(item)."),
        ("process", lambda: None, "not process()."),
        ("process", lambda item, job, other: item, "not process(item, job, other)."),
        ("process", lambda job, item: item, "not process(job, item)."),
        ("process", lambda item, job, *, model: item, "not process(item, job, *, model)."),
        ("process_batch", lambda items, job, context: items, "not process_batch(items, job, context)."),
    ],
)
def test_any_other_is_refused_at_the_start_with_the_right_one(
    name: str, function: Callable[..., Any], shown: str
) -> None:
    with pytest.raises(Refused) as refused:
        worker(**{name: function})
    items = "items" if name == "process_batch" else "item"
    assert str(refused.value).startswith(f"task.{name} must be {name}({items}, job) or {name}({items}, job, context")
    assert str(refused.value).endswith(shown)


async def awaits(item: int, job: Input) -> int:
    return item


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def around(*arguments: Any) -> Any:
        return function(*arguments)

    return around


class Model:
    async def __call__(self, item: int, job: Input) -> int:
        return item


@pytest.mark.parametrize(
    "function",
    [
        awaits,
        functools.partial(awaits),
        decorated(awaits),
        decorated(functools.partial(awaits)),
        Model().__call__,
        Model(),
    ],
)
def test_a_decorated_or_partial_async_function_is_async(function: Callable[..., Any]) -> None:
    assert kind(function) == (True, False)
    assert worker(process=function).slots.most_items == 32


def run(task: Any, given: dict[str, Any], **settings: Any) -> list[Any]:
    """Do a job; return what is yielded for it."""

    async def chunks() -> list[Any]:
        return [chunk async for chunk in runner(task, **settings).run({"id": "job", "input": given})]

    return asyncio.run(chunks())


class Ported(BaseModel):
    """As an existing worker's requests look: a list under another name, or a single one."""

    model_config = ConfigDict(extra="forbid")

    items: list[str] = Field(validation_alias="prompts")

    @model_validator(mode="before")
    @classmethod
    def _from_one(cls, given: Any) -> Any:
        return {"prompts": [given["prompt"]]} if "prompt" in given else given


@pytest.mark.parametrize(
    ("given", "output"),
    [
        ({"prompts": ["a", "b"]}, ["a", "b"]),
        ({"prompt": "a"}, ["a"]),
        ({"prompts": []}, "No items provided"),
        ({"prompts": None}, "No items provided"),
        ({}, "No items provided"),
        ({"items": ["a"]}, "No items provided"),
    ],
)
def test_an_input_may_have_another_shape_than_items(given: dict[str, Any], output: Any) -> None:
    ported: Any = SimpleNamespace(Input=Ported, load=lambda: None, process=lambda item, job: item)
    found = run(ported, given)
    if isinstance(output, str):
        assert found == [{"error": output}]
    else:
        assert [envelope["result"] for envelope in found] == output


@pytest.mark.parametrize("kind", ["plain", "async", "batch"])
def test_a_task_may_do_what_it_likes_to_the_list_of_its_job(kind: str) -> None:
    def process(item: str, job: Ported) -> str:
        job.items.clear()
        return item

    async def process_async(item: str, job: Ported) -> str:
        return process(item, job)

    def process_batch(items: list[str], job: Ported) -> list[str]:
        return [process(item, job) for item in items]

    name, function = {
        "plain": ("process", process),
        "async": ("process", process_async),
        "batch": ("process_batch", process_batch),
    }[kind]
    task: Any = SimpleNamespace(Input=Ported, load=lambda: None, **{name: function})
    prompts = [str(number) for number in range(200)]
    assert [envelope["result"] for envelope in run(task, {"prompts": prompts})] == prompts


@pytest.mark.parametrize("name", ["process", "process_batch"])
def test_the_job_of_a_call_has_the_items_of_that_call(name: str) -> None:
    def process(item: str, job: Ported) -> bool:
        return job.items == [item]

    def process_batch(items: list[str], job: Ported) -> list[bool]:
        return [job.items == items] * len(items)

    function = process if name == "process" else process_batch
    task: Any = SimpleNamespace(Input=Ported, load=lambda: None, **{name: function})
    found = run(task, {"prompts": [str(number) for number in range(10)]}, batch_size=4)
    assert [envelope["result"] for envelope in found] == [True] * 10


def test_a_refusal_fits_the_response_too() -> None:
    ported: Any = SimpleNamespace(Input=Ported, load=lambda: None, process=lambda item, job: item)
    [refusal] = run(ported, {"prompts": ["a"], "😀" * 1_500: 1}, max_output_bytes=1_000)
    assert refusal["error"].startswith("The job's input cannot be used: there is no field 😀")
    assert len(json.dumps(refusal)) <= 1_000


def test_an_item_may_ask_for_a_new_worker(serve: Serve) -> None:
    caller = serve("hostile")
    state = caller.runsync([{"refresh_worker": True, "kept": 1}, {"refresh_worker": False}])
    assert [envelope["result"] for envelope in state["output"]] == [{"kept": 1}, {"refresh_worker": False}]
    while caller.runsync([1])["workerId"] == state["workerId"]:
        pass
