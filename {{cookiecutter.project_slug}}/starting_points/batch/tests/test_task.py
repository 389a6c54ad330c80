"""Yours: what ``task.py`` promises, with the tiny model of ``conftest.py``."""

import socket
from pathlib import Path

import pytest
import torch

import task
from aggregating_worker.testing.caller import Serve


@pytest.fixture(scope="module", autouse=True)
def loaded(model: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODEL_ID", str(model))
        task.load()


def test_a_batch_has_a_result_per_item_in_order() -> None:
    items = ["i love this product", "i hate this product", "unheard of", ""]
    results = task.process_batch(items, task.Input(items=items))
    assert [result["text"] for result in results] == items
    for result in results:
        [best] = result["labels"]
        assert best["label"] in ("LABEL_0", "LABEL_1")
        assert 0.5 <= best["score"] <= 1


def test_a_batch_and_its_items_alone_agree() -> None:
    items = ["i love this product", "love", "i hate i hate i hate this"]
    job = task.Input(items=items, labels="all")
    together = task.process_batch(items, job)
    alone = [task.process_batch([item], job)[0] for item in items]
    for one, other in zip(together, alone, strict=True):
        assert {label["label"]: label["score"] for label in one["labels"]} == pytest.approx(
            {label["label"]: label["score"] for label in other["labels"]}, abs=1e-3
        )


def test_all_labels_are_given_on_request() -> None:
    [result] = task.process_batch(["i love this"], task.Input(items=["x"], labels="all"))
    assert {label["label"] for label in result["labels"]} == {"LABEL_0", "LABEL_1"}
    assert sum(label["score"] for label in result["labels"]) == pytest.approx(1, abs=1e-3)


def test_a_text_longer_than_the_model_reads_is_cut() -> None:
    [result] = task.process_batch(["love " * 100], task.Input(items=["x"]))
    assert result["labels"]


def test_the_model_is_on_the_gpu_if_there_is_one() -> None:
    assert task._classify.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_nothing_is_asked_of_the_hub_where_the_model_is_there(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hub:
        caller = serve(HF_ENDPOINT=f"http://127.0.0.1:{hub.getsockname()[1]}", MODEL_REVISION="main")
        assert caller.runsync(["i love this"])["status"] == "COMPLETED"
        hub.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has called
            hub.accept()
