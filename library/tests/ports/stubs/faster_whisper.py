"""In place of the package faster-whisper: a recording is a text, and each line of it a segment."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Word:
    start: float
    end: float
    word: str
    probability: float


@dataclass
class Segment:
    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    words: list[Word] | None
    temperature: float


@dataclass
class TranscriptionInfo:
    language: str
    language_probability: float


class WhisperModel:
    def __init__(self, name: str, device: str, compute_type: str) -> None:
        self.name = name

    def transcribe(
        self, audio: str, *, word_timestamps: bool = False, temperature: list[float], **_: Any
    ) -> tuple[Iterator[Segment], TranscriptionInfo]:
        lines = Path(audio).read_text(encoding="utf-8").splitlines()
        segments = (_segment(number, line, word_timestamps, temperature[0]) for number, line in enumerate(lines))
        return segments, TranscriptionInfo("en", 0.99)


def _segment(number: int, line: str, word_timestamps: bool, temperature: float) -> Segment:
    words = [Word(2.0 * number, 2.0 * number + 2, f" {line}", 0.9)] if word_timestamps else None
    times = (2.0 * number, 2.0 * number + 2)
    return Segment(number + 1, 100, *times, f" {line}", [50364, number], -0.25, 0.5, 0.125, words, temperature)
