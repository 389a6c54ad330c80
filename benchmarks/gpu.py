"""One item a job from 64 clients through the starting point ``batch``, with and without calls that jobs share.

``python benchmarks/gpu.py`` runs on the GPU if there is one, and prints Markdown for the README. It needs no network
and no baked project, only packages: torch, transformers 5, runpod and what comes with it, uvicorn, fastapi, httpx2 and
aiohttp. The model is as large as DistilBERT's classifier; its weights are random, and made here, in a folder that is
removed at the end. ``--jobs 64 --rounds 1`` is enough to see it work on a CPU.
"""

import argparse
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path

import tokenizers
import torch
import transformers

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "library" / "src"))  # it may not be installed where a GPU is
os.environ["PYTHONPATH"] = sys.path[0]

from aggregating_worker.local import LocalEndpoint  # noqa: E402
from clients import Answered, answered  # noqa: E402
from serve import TEMPLATE, wait_until_ready  # noqa: E402

CLIENTS = 64
WORDS = 48
"""In an item."""
SHARING: dict[str, dict[str, str]] = {
    "none, one job at a time (`JOB_CONCURRENCY=1`)": {"JOB_CONCURRENCY": "1"},
    "none (`BATCH_SIZE=1`)": {"BATCH_SIZE": "1"},
    "up to 32 items a call (the default)": {},
    "up to 64 items a call (`BATCH_SIZE=64`)": {"BATCH_SIZE": "64"},
}


def save_model(folder: Path) -> str:
    """Save a classifier of DistilBERT's size with random weights, and return a text for it."""
    config = transformers.DistilBertConfig()
    words = ["[PAD]", "[UNK]", *(f"word{number}" for number in range(2, config.vocab_size))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=config.max_position_embeddings, **special
    ).save_pretrained(folder)
    torch.manual_seed(0)
    transformers.DistilBertForSequenceClassification(config).save_pretrained(folder)
    return " ".join(words[-WORDS:])


@contextmanager
def sample(model: Path, env: Mapping[str, str]) -> Iterator[LocalEndpoint]:
    """Serve the starting point with that model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(TEMPLATE / "handler.py", folder)
        shutil.copy(TEMPLATE / "starting_points" / "batch" / "task.py", folder / "batch.py")
        shutil.copy(HERE / "tasks" / "sample.py", folder / "task.py")
        env = {"MODEL_ID": str(model), "HF_HUB_OFFLINE": "1", **env}
        with LocalEndpoint(
            [sys.executable, "-u", "handler.py"], cwd=folder, env=env, log=sys.stderr.buffer
        ) as endpoint:
            wait_until_ready(endpoint)
            yield endpoint


def measure(model: Path, text: str, jobs: int, rounds: int) -> dict[str, list[Answered]]:
    """Return what came of each way of ``SHARING``, by round; they take turns."""
    found: dict[str, list[Answered]] = {words: [] for words in SHARING}
    with ExitStack() as stack:
        served = {words: stack.enter_context(sample(model, env)) for words, env in SHARING.items()}
        for endpoint in served.values():  # the first calls on a GPU are slower than all others
            answered(endpoint.url, CLIENTS, CLIENTS, {"items": [text]})
        for number in range(rounds):
            for words, endpoint in served.items():
                found[words].append(answered(endpoint.url, CLIENTS, jobs, {"items": [text]}))
                print(f"round {number + 1} of {rounds}, {words}: {found[words][-1].rate:.0f} a second", file=sys.stderr)
    return found


def table(found: Mapping[str, list[Answered]], jobs: int) -> str:
    """Return the results in Markdown."""
    lines = [
        "| calls that jobs share | jobs a second | items a call | times the first row: median (range) |",
        "|---|---|---|---|",
    ]
    alone = next(iter(found.values()))
    for words, each in found.items():
        ratios = [ours.rate / first.rate for ours, first in zip(each, alone, strict=True)]
        cells = [
            words,
            f"{statistics.median(one.rate for one in each):.0f}",
            f"{statistics.mean(one.jobs / one.calls for one in each):.1f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "runpod"))
    text = (
        f"{jobs} jobs a round, one item of {WORDS} words each, {CLIENTS} clients. Measured on {device}, "
        f"{len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, {packages}."
    )
    return "\n".join([*lines, "", text])


def main() -> None:
    """Measure, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2_000, help="a round (default: 2000)")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    given = parser.parse_args()
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "ERROR")
    with tempfile.TemporaryDirectory() as name:
        text = save_model(Path(name))
        print(table(measure(Path(name), text, given.jobs, given.rounds), given.jobs))


if __name__ == "__main__":
    main()
