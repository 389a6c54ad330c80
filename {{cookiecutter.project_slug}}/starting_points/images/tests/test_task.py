"""Yours: what ``task.py`` promises, with the tiny pipeline of ``conftest.py``."""

import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError

import task
from aggregating_worker.testing.caller import Serve

SMALL = {"width": 64, "height": 72, "steps": 2}
TOLERANCE = 2
"""Of 255: what a kernel that is chosen by the size of a call may round differently."""


@pytest.fixture(scope="module", autouse=True)
def loaded(model: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODEL_ID", str(model))
        task.load()


def paint(items: Sequence[Any], **options: Any) -> list[task.Picture]:
    """Return what one call makes of the job's items."""
    job = task.Input.model_validate({**SMALL, **options, "items": items})
    return task.process_batch(job.items, job)


def pixels(pictures: list[task.Picture]) -> list[np.ndarray[Any, Any]]:
    return [np.asarray(picture["image"]).astype(int) for picture in pictures]


def difference(some: list[task.Picture], others: list[task.Picture]) -> int:
    """Return by how much of 255 the pictures differ, where they differ most."""
    return max(int(np.abs(a - b).max()) for a, b in zip(pixels(some), pixels(others), strict=True))


FULL = [{"prompt": word, "seed": seed} for seed, word in enumerate(["a fox", "", "snow", "a b c d e f g h"] * 2)]
"""As many items as a call has at most, of which no two are equal."""


def test_a_call_has_a_picture_per_item_in_order_of_the_size_asked_for() -> None:
    assert len(FULL) == task.BATCH_SIZE
    pictures = paint(FULL)
    assert [picture["seed"] for picture in pictures] == [item["seed"] for item in FULL]
    assert {(picture["image"].mode, picture["image"].size) for picture in pictures} == {("RGB", (64, 72))}


def test_the_same_call_twice_is_the_same_bytes() -> None:
    once = paint(FULL)
    torch.manual_seed(torch.seed())
    again = paint(FULL)
    assert [picture["image"].tobytes() for picture in once] == [picture["image"].tobytes() for picture in again]


def test_an_item_alone_and_in_a_full_call_is_the_same_picture() -> None:
    together = paint(FULL)
    alone = [picture for item in FULL for picture in paint([item])]
    assert difference(together, alone) <= TOLERANCE
    assert difference(together, paint(FULL[::-1])[::-1]) <= TOLERANCE


def test_items_of_jobs_with_equal_options_share_a_call() -> None:
    jobs = [task.Input.model_validate({**SMALL, "items": items}) for items in (FULL[:3], FULL[3:5])]
    shared = task.process_batch([*jobs[0].items, *jobs[1].items], jobs[0])
    own = [picture for job in jobs for picture in task.process_batch(job.items, job)]
    assert difference(shared, own) <= TOLERANCE


@pytest.mark.parametrize("other", [{"prompt": "a cat"}, {"seed": 8}, {"steps": 3}, {"guidance": 30}])
def test_prompt_seed_and_options_each_make_another_picture(other: dict[str, Any]) -> None:
    asked = {"prompt": "a fox", "seed": 7, **other}
    item = {name: asked.pop(name) for name in ("prompt", "seed")}
    assert difference(paint([{"prompt": "a fox", "seed": 7}]), paint([item], **asked)) > TOLERANCE


def test_what_comes_without_a_seed_gets_one_that_makes_it_again() -> None:
    items = ["a fox", {"prompt": "a fox"}, {"prompt": "a fox", "seed": 7}]
    pictures = paint(items)
    assert len({picture["seed"] for picture in pictures}) == 3
    assert pictures[2]["seed"] == 7
    again = paint([{"prompt": "a fox", "seed": picture["seed"]} for picture in pictures])
    assert difference(pictures, again) == 0


def test_two_calls_at_once_do_not_touch_each_other() -> None:
    halves = [FULL[:4], FULL[4:]] * 4
    one_by_one = [paint(half) for half in halves]
    with ThreadPoolExecutor(4) as threads:
        at_once = list(threads.map(paint, halves))
    for some, others in zip(one_by_one, at_once, strict=True):
        assert difference(some, others) == 0


def test_a_prompt_longer_than_the_model_reads_is_cut() -> None:
    assert len(paint(["a fox " * 100])) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 1032},
        {"width": 500},
        {"height": 0},
        {"steps": 0},
        {"steps": 51},
        {"guidance": -1},
        {"guidance": float("nan")},
        {"items": [1]},
        {"items": [{"seed": 1}]},
        {"items": [{"prompt": "a fox", "steps": 1}]},
        {"items": [{"prompt": "a fox", "seed": -1}]},
        {"items": [{"prompt": "a fox", "seed": 2**32}]},
        {"items": ["a" * 2_001]},
        {"sampler": "euler"},
    ],
    ids=str,
)
def test_what_is_out_of_bounds_is_refused_by_one_fault(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        task.Input.model_validate({"items": ["a fox"], **wrong})
    assert refused.value.error_count() == 1


def test_a_picture_that_the_models_safety_checker_blacks_out_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    eye = {"image_size": 8, "patch_size": 4, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    checker = diffusers.pipelines.stable_diffusion.StableDiffusionSafetyChecker(
        transformers.CLIPConfig(vision_config={**eye, "intermediate_size": 8}, projection_dim=8)
    )
    checker.concept_embeds_weights.fill_(-2)  # less than any cosine: every picture is like every concept
    monkeypatch.setattr(task._pipeline, "safety_checker", checker.to(task._pipeline.device, task._pipeline.dtype))
    eyes = transformers.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    monkeypatch.setattr(task._pipeline, "feature_extractor", eyes)
    with pytest.raises(ValueError, match="safety checker"):
        paint(["a fox"])


def test_the_model_is_on_the_gpu_in_half_precision_if_there_is_one() -> None:
    expected = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    for part in (task._pipeline.unet, task._pipeline.vae, task._pipeline.text_encoder):
        assert (part.device.type, part.dtype) == expected


def test_nothing_is_asked_of_the_hub_where_the_model_is_there(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hub:
        caller = serve(HF_ENDPOINT=f"http://127.0.0.1:{hub.getsockname()[1]}", MODEL_REVISION="main")
        assert caller.runsync(["a fox"], **SMALL)["status"] == "COMPLETED"
        hub.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has called
            hub.accept()
