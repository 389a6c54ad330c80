"""Yours: what a job may ask for, what is loaded once, and what a batch of prompts becomes.

The model is ``MODEL_ID``, a Diffusers text-to-image pipeline: a name on the Hugging Face Hub or a folder.
"""

import os
import secrets
import threading
from typing import Annotated, Any, TypedDict

import diffusers
import torch
from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from aggregating_worker import find_device, find_model

MODEL_ID = "SimianLuo/LCM_Dreamshaper_v7"
"""About a billion parameters, under the MIT license, four steps to a picture. Another may want other defaults below."""
BATCH_SIZE = 8
"""Pictures per call. A larger call takes more GPU memory; one that does not fit is made again picture by picture."""

_pipeline: diffusers.DiffusionPipeline
_one_call_at_a_time = threading.Lock()
"""A pipeline's scheduler keeps the state of its call; ``ITEM_CONCURRENCY=2`` would have two calls share it."""


class Prompt(BaseModel):
    """What one picture is made from; without a seed, one is chosen."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(max_length=2_000)
    seed: int = Field(default_factory=lambda: secrets.randbits(32), ge=0, lt=2**32)


def _as_prompt(item: Any) -> Any:
    """Let a text stand for the prompt that it is."""
    return {"prompt": item} if isinstance(item, str) else item


Item = Annotated[Prompt, BeforeValidator(_as_prompt, json_schema_input_type=str | Prompt)]
Pixels = Annotated[int, Field(ge=64, le=1024, multiple_of=8)]


class Input(BaseModel):
    """The job's input: items is what gets processed, every other field is an option for the whole job."""

    model_config = ConfigDict(extra="forbid")

    items: list[Item]
    width: Pixels = 512
    height: Pixels = 512
    steps: int = Field(4, ge=1, le=50)
    guidance: float = Field(8.0, ge=0, le=30)


class Picture(TypedDict):
    """One result: the picture, and the seed that makes it again."""

    image: Image.Image
    seed: int


def load() -> None:
    """Load the model, once, onto the GPU in half precision."""
    global _pipeline
    device = find_device()
    _pipeline = diffusers.DiffusionPipeline.from_pretrained(
        find_model(os.environ.get("MODEL_ID") or MODEL_ID),
        revision=os.environ.get("MODEL_REVISION") or None,  # of what is fetched from the Hub
        dtype=torch.float16 if device == "cuda" else torch.float32,
        low_cpu_mem_usage=False,  # with it, accelerate would bring a PyTorch of its own into the image
    ).to(device)
    _pipeline.set_progress_bar_config(disable=True)


def process_batch(items: list[Prompt], job: Input) -> list[Picture]:
    """Turn a batch of prompts into a list with a picture for each.

    If this raises, its halves are tried, down to the guilty items.

    A picture depends on its prompt, its seed and the job's options alone, but for what a GPU rounds by a call's size.
    """
    with _one_call_at_a_time:
        made = _pipeline(
            prompt=[item.prompt for item in items],
            # One for each: its noise does not depend on what shares the call. On the CPU: nor on the kind of GPU.
            generator=[torch.Generator("cpu").manual_seed(item.seed) for item in items],
            width=job.width,
            height=job.height,
            num_inference_steps=job.steps,
            guidance_scale=job.guidance,
        )
    if any(getattr(made, "nsfw_content_detected", None) or ()):
        raise ValueError("The model's safety checker has blacked the picture out: try another prompt or seed.")
    return [{"image": image, "seed": item.seed} for image, item in zip(made.images, items, strict=True)]
