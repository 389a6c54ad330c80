"""Yours: what a job may ask for, what is loaded once, and what a batch of items becomes.

The model is ``MODEL_ID``, a Transformers text classifier: a name on the Hugging Face Hub or a folder.
"""

import os
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from pydantic import BaseModel, ConfigDict

MODEL_ID = "distilbert/distilbert-base-uncased-finetuned-sst-2-english"
MODEL_CACHE = Path("/runpod-volume/huggingface-cache/hub")
"""Where Runpod puts an endpoint's cached model (docs, serverless/endpoints/model-caching)."""

_classify: transformers.Pipeline


class Input(BaseModel):
    """The job's input: items is what gets processed, every other field is an option for the whole job."""

    model_config = ConfigDict(extra="forbid")

    items: list[str]
    labels: Literal["best", "all"] = "best"


def load() -> None:
    """Load the model, once, onto the GPU if there is one."""
    global _classify
    model = find_model(os.environ.get("MODEL_ID", MODEL_ID))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _classify = transformers.pipeline("text-classification", model=str(model), device=device)


def find_model(model_id: str) -> str | Path:
    """Return the folder of ``model_id`` in Runpod's model cache, or ``model_id`` itself if it is not there."""
    snapshots = MODEL_CACHE / f"models--{model_id.replace('/', '--')}" / "snapshots"
    return max(snapshots.glob("*/"), key=lambda folder: folder.stat().st_mtime, default=model_id)


def process_batch(items: list[str], job: Input) -> list[Any]:
    """Turn a batch of items into a list with a result for each.

    If this raises, its halves are tried, down to the guilty items.
    """
    scores = _classify(items, batch_size=len(items), top_k=None if job.labels == "all" else 1, truncation=True)
    return [
        {"text": item, "labels": [{"label": found["label"], "score": round(found["score"], 4)} for found in labels]}
        for item, labels in zip(items, scores, strict=True)
    ]
