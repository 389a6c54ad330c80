"""worker-vllm, ported: a text or a chat goes on, token by token, also as the OpenAI API has it.

The original: https://github.com/runpod-workers/worker-vllm, ``src/`` of v2.23.0, the last with the engine in the worker
itself.
"""

import json
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict
from vllm import (  # type: ignore[import-not-found]
    AsyncLLMEngine,
    ChatCompletionRequest,
    ErrorInfo,
    ErrorResponse,
    OpenAIServingChat,
    SamplingParams,
)

from aggregating_worker import ItemFailed

ITEM_CONCURRENCY = int(os.environ.get("MAX_CONCURRENCY", "30"))  # what the concurrency_modifier returned

MODEL = os.environ.get("MODEL_NAME", "facebook/opt-125m")
RAW_OPENAI_OUTPUT = os.environ.get("RAW_OPENAI_OUTPUT", "1").lower() in ("1", "true")
TOKENS_AT_ONCE = int(os.environ.get("DEFAULT_BATCH_SIZE", "50"))


class Request(BaseModel):
    """One request of the old worker, which took no notice of other fields: so they are no fault here, either."""

    prompt: Any = None  # of either, a text or a chat; the engine says what is wrong with something else
    messages: Any = None
    stream: bool = False
    sampling_params: dict[str, Any] = {}
    apply_chat_template: bool = False
    min_batch_size: int | None = None
    max_batch_size: int | None = None
    batch_size_growth_factor: float | None = None
    openai_route: str | None = None
    openai_input: dict[str, Any] | None = None


class Input(BaseModel):
    """Several of them."""

    model_config = ConfigDict(extra="forbid")
    items: list[Request]


def single(request: dict[str, Any]) -> dict[str, Any] | None:
    """Take the request of an older caller, too, and what the platform makes of a call of ``/openai/…``."""
    return None if "items" in request else {"items": [request]}


engine: Any
chat: Any


async def load() -> None:
    """Load the model; on the event loop of ``process``, to which the engine is bound."""
    global engine, chat
    engine = AsyncLLMEngine()
    chat = OpenAIServingChat(engine, MODEL)


async def process(item: Request, job: Input) -> AsyncIterator[Any]:
    """Yield what the old handler did. Where it yielded an error, its job failed with that as text: so does the item."""
    async for batch in openai(item) if item.openai_route else generate(item):
        if isinstance(batch, dict) and batch.get("error"):
            raise ItemFailed(str(batch["error"]), type="Error")
        yield batch


async def generate(item: Request) -> AsyncIterator[dict[str, Any]]:
    """Yield the tokens, some more at a time each time, or all of the text."""
    params = SamplingParams(**{"max_tokens": 100, **item.sampling_params})
    prompt = item.prompt if item.messages is None else item.messages
    if item.apply_chat_template or isinstance(prompt, list):
        prompt = engine.tokenizer.apply_chat_template(prompt)
    said = [""] * params.n
    tokens: list[list[str]] = [[] for _ in said]
    read = made = 0
    sizes = batch_sizes(item)
    size = next(sizes)

    def batch() -> dict[str, Any]:
        return {"choices": [{"tokens": each} for each in tokens], "usage": {"input": read, "output": made}}

    try:
        async for answer in engine.generate(prompt, params, uuid4().hex):
            read = len(answer.prompt_token_ids)
            for output in answer.outputs:
                made += 1
                if item.stream:
                    tokens[output.index].append(output.text[len(said[output.index]) :])
                    if sum(map(len, tokens)) >= size:
                        yield batch()
                        tokens = [[] for _ in said]
                        size = next(sizes)
                said[output.index] = output.text
    except Exception as error:
        if "cuda" in str(error).lower():  # the old worker ended; here it is enough that the task's process does
            raise ItemFailed(str(error), restart=True) from error
        yield {"error": refused(str(error))}
        return
    if not item.stream:
        tokens = [[text] for text in said]
    if any(tokens):
        yield batch()


def batch_sizes(item: Request) -> Iterator[float]:
    """Yield how many tokens go into each batch: few at first, so that a reader sees some at once."""
    most = item.max_batch_size or TOKENS_AT_ONCE
    size: float = item.min_batch_size or 1
    factor = item.batch_size_growth_factor or 3
    while factor > 1 and size < most:
        yield size
        size *= factor
    while True:
        yield most


async def openai(item: Request) -> AsyncIterator[Any]:
    """Yield what the OpenAI API answers, as one object, or as server-sent events."""
    if item.openai_route == "/v1/models":
        yield chat.models()
        return
    if item.openai_route != "/v1/chat/completions":
        yield refused("Invalid route")
        return
    try:
        request = ChatCompletionRequest(**item.openai_input or {})
    except ValueError as error:
        yield refused(str(error))
        return
    answer = await chat.create_chat_completion(request)
    if not request.stream or isinstance(answer, ErrorResponse):
        yield answer.model_dump()
        return
    sizes = batch_sizes(Request())
    size = next(sizes)
    events: list[str] = []
    async for event in answer:
        if RAW_OPENAI_OUTPUT or "[DONE]" not in event:
            events.append(event)
        if len(events) >= size:
            yield joined(events)
            events = []
            size = next(sizes)
    if events:
        yield joined(events)


def joined(events: list[str]) -> Any:
    """Return events as the platform passes them on or, without ``RAW_OPENAI_OUTPUT``, as what they hold."""
    if RAW_OPENAI_OUTPUT:
        return "".join(events)
    return [json.loads(event.removeprefix("data: ")) for event in events]


def refused(message: str) -> dict[str, Any]:
    """Return an error as the OpenAI API has it."""
    answer = ErrorResponse(error=ErrorInfo(message=message, type="BadRequestError", code=400))
    dumped: dict[str, Any] = answer.model_dump()
    return dumped
