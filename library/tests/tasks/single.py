"""A task that also answers the requests of an older worker, ``{"prompt": …, "steps": …}``, in the old form."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Item(BaseModel):
    model_config = ConfigDict(extra="forbid")

    prompt: str
    seed: int = 0


class Input(BaseModel):
    model_config = ConfigDict(extra="forbid")

    items: list[Item]
    steps: int = Field(20, ge=1)


def single(request: dict[str, Any]) -> dict[str, Any] | None:
    match request:
        case {"prompt": _}:
            item = {name: request.pop(name) for name in ("prompt", "seed") if name in request}
            return {"items": [item], **request}
        case {"prompts": [*prompts]}:
            return {"items": [{"prompt": prompt} for prompt in prompts]}
        case {"wrong": kind}:
            values: dict[str, Any] = {"none": None, "value": ValueError(), "list": [], "key": {"item": []}}
            wrong: dict[str, Any] | None = values[kind]
            return wrong
    return None


def load() -> None:
    pass


def process(item: Item, job: Input) -> Any:
    match item.prompt.split():
        case ["fail", *words]:
            raise ValueError(" ".join(words))
        case ["error"]:
            return {"error": {"code": 7}, "refresh_worker": True}
        case ["large", size]:
            return "x" * int(size)
        case ["file"]:
            return {"file": b"\x89PNG\r\n\x1a\n"}
    return {"prompt": item.prompt, "seed": item.seed, "steps": job.steps}
