"""In place of the package vLLM, as one module: an engine that says a prompt's words again, and its OpenAI routes."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel


class SamplingParams:
    def __init__(self, max_tokens: int, temperature: float = 1.0, n: int = 1) -> None:
        if temperature < 0:
            raise ValueError(f"temperature must be non-negative, got {temperature}.")
        self.max_tokens = max_tokens
        self.n = n


@dataclass
class CompletionOutput:
    index: int
    text: str
    """All of it so far, not what is new."""


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]


class Tokenizer:
    def apply_chat_template(self, messages: list[dict[str, str]]) -> str:
        return " ".join(f"{message['role']}: {message['content']}" for message in messages)


class AsyncLLMEngine:
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.tokenizer = Tokenizer()

    async def generate(self, prompt: Any, params: SamplingParams, request_id: str) -> AsyncIterator[RequestOutput]:
        assert asyncio.get_running_loop() is self.loop, "attached to a different loop"
        if not prompt:
            raise ValueError("The decoder prompt cannot be empty")
        if prompt == "lose the GPU":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        words = prompt.split()
        for count in range(1, min(len(words), params.max_tokens) + 1):
            await asyncio.sleep(0)
            said = " ".join(words[:count])
            yield RequestOutput([*range(len(words))], [CompletionOutput(index, said) for index in range(params.n)])


class ErrorInfo(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: int


class ErrorResponse(BaseModel):
    error: ErrorInfo


class ChatCompletionRequest(BaseModel):
    messages: list[dict[str, str]]
    model: str
    stream: bool = False


class ChatCompletionResponse(BaseModel):
    id: str
    object: str
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: dict[str, int]


class OpenAIServingChat:
    def __init__(self, engine: AsyncLLMEngine, model: str) -> None:
        self.engine = engine
        self.model = model

    def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [{"id": self.model, "object": "model", "created": 0, "owned_by": "vllm"}]}

    async def create_chat_completion(
        self, request: ChatCompletionRequest
    ) -> ErrorResponse | ChatCompletionResponse | AsyncIterator[str]:
        if request.model != self.model:
            message = f"The model `{request.model}` does not exist."
            return ErrorResponse(error=ErrorInfo(message=message, type="NotFoundError", param="model", code=404))
        words = request.messages[-1]["content"].split()
        if request.stream:
            return self._streamed(words)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": " ".join(words)},
            "logprobs": None,
            "finish_reason": "stop",
        }
        usage = {"prompt_tokens": len(words), "total_tokens": 2 * len(words), "completion_tokens": len(words)}
        return ChatCompletionResponse(
            id="chatcmpl-1", object="chat.completion", created=0, model=self.model, choices=[choice], usage=usage
        )

    async def _streamed(self, words: list[str]) -> AsyncIterator[str]:
        for word in words:
            await asyncio.sleep(0)
            choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
            chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": self.model}
            yield f"data: {json.dumps({**chunk, 'choices': [choice]})}\n\n"
        yield "data: [DONE]\n\n"
