"""Yours: what a job may ask for, what is loaded once, and what a batch of items becomes.

The model is ``MODEL_ID``, a Transformers text classifier: a name on the Hugging Face Hub or a folder.
"""

import os
from typing import Any, Literal

import transformers
from pydantic import BaseModel, ConfigDict

from aggregating_worker import find_device, find_model

MODEL_ID = "distilbert/distilbert-base-uncased-finetuned-sst-2-english"

_classify: transformers.Pipeline


class Input(BaseModel):
    """The job's input: items is what gets processed, every other field is an option for the whole job."""

    model_config = ConfigDict(extra="forbid")

    items: list[str]
    labels: Literal["best", "all"] = "best"


def load() -> None:
    """Load the model, once, onto the GPU."""
    global _classify
    device = find_device()
    _classify = transformers.pipeline(
        "text-classification",
        model=find_model(os.environ.get("MODEL_ID") or MODEL_ID),
        revision=os.environ.get("MODEL_REVISION") or None,  # of what is fetched from the Hub
        device=device,
    )


def process_batch(items: list[str], job: Input) -> list[Any]:
    """Turn a batch of items into a list with a result for each.

    If this raises, its halves are tried, down to the guilty items.
    """
    scores = _classify(items, batch_size=len(items), top_k=None if job.labels == "all" else 1, truncation=True)
    return [
        {"text": item, "labels": [{"label": found["label"], "score": round(found["score"], 4)} for found in labels]}
        for item, labels in zip(items, scores, strict=True)
    ]
