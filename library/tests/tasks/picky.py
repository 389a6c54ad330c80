"""A task that refuses a job for one of its items, as a validator of the whole list does, and has a name for them."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, Field, model_validator


def valid(item: Any) -> Any:
    if isinstance(item, dict) and "invalid" in item:
        raise ValueError(item["invalid"])
    return item


class Input(BaseModel):
    items: list[Annotated[Any, AfterValidator(valid)]] = Field(alias="prompts")
    option: int = 0

    @model_validator(mode="after")
    def all_liked(self) -> Self:
        for item in self.items:
            if isinstance(item, dict) and "dislike" in item:
                raise ValueError(item["dislike"])
        return self


def load() -> None:
    pass


def process(item: Any, job: Any) -> Any:
    """Return the item, and write it down where it says."""
    match item:
        case {"log": log, "item": value}:
            with Path(log).open("a") as file:
                file.write(f"{value}\n")
            return value
        case {"read": path}:
            return Path(path).read_text()
        case {"fail": why}:
            raise ValueError(why)
    return item
