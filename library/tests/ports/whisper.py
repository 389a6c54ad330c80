"""worker-faster_whisper, ported: a recording is transcribed, and translated if that is asked for.

The original: https://github.com/runpod-workers/worker-faster_whisper, ``src/`` of May 2025.
"""

import base64
import math
from pathlib import Path
from typing import Any, Self

from faster_whisper import WhisperModel  # type: ignore[import-not-found]
from pydantic import BaseModel, ConfigDict, model_validator
from runpod.serverless.utils import rp_cuda
from runpod.serverless.utils.rp_download import download_files_from_urls

from aggregating_worker import Context, ItemFailed

ITEM_CONCURRENCY = 1  # one recording at a time, as before: the GPU has room for one model

MODELS = ("tiny", "base", "small", "medium", "large-v1", "large-v2", "large-v3", "turbo")
SHOWN = "id seek start end text tokens temperature avg_logprob compression_ratio no_speech_prob".split()
"""What a caller sees of a segment."""


class Recording(BaseModel):
    """One request of the old worker."""

    model_config = ConfigDict(extra="forbid", strict=True)  # as rp_validator: no unknown field, and "5" is no number
    audio: str | None = None
    audio_base64: str | None = None
    model: str = "base"
    transcription: str = "plain_text"
    translate: bool = False
    translation: str = "plain_text"
    language: str | None = None
    temperature: float = 0.0
    best_of: int = 5
    beam_size: int = 5
    patience: float = 1.0
    length_penalty: float = 0.0
    suppress_tokens: str = "-1"
    initial_prompt: str | None = None
    condition_on_previous_text: bool = True
    temperature_increment_on_fallback: float = 0.2
    compression_ratio_threshold: float = 2.4
    logprob_threshold: float = -1.0
    no_speech_threshold: float = 0.6
    enable_vad: bool = False
    word_timestamps: bool = False

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse what the handler refused, in its words."""
        if not (self.audio or self.audio_base64):
            raise ValueError("Must provide either audio or audio_base64")
        if self.audio and self.audio_base64:
            raise ValueError("Must provide either audio or audio_base64, not both")
        return self


class Input(BaseModel):
    """Several of them."""

    model_config = ConfigDict(extra="forbid")
    items: list[Recording]


def single(request: dict[str, Any]) -> dict[str, Any] | None:
    """Take the request of an older caller, too: the fields of one recording."""
    return None if "items" in request else {"items": [request]}


models: dict[str, Any] = {}
"""The one that was asked for last."""


def load() -> None:
    """Load the model that most requests ask for."""
    find("base")


def process(item: Recording, job: Input, context: Context) -> dict[str, Any]:
    """Return what the old worker's ``predict`` did."""
    recording = download(item.audio, context.folder) if item.audio else decode(item.audio_base64, context.folder)
    model = find(item.model)
    steps = math.ceil((1 + 1e-6 - item.temperature) / item.temperature_increment_on_fallback)
    temperatures = [item.temperature + item.temperature_increment_on_fallback * step for step in range(steps)]
    found, info = model.transcribe(
        recording,
        language=item.language,
        task="transcribe",
        beam_size=item.beam_size,
        best_of=item.best_of,
        patience=item.patience,
        length_penalty=item.length_penalty,
        temperature=temperatures,
        compression_ratio_threshold=item.compression_ratio_threshold,
        log_prob_threshold=item.logprob_threshold,
        no_speech_threshold=item.no_speech_threshold,
        condition_on_previous_text=item.condition_on_previous_text,
        initial_prompt=item.initial_prompt,
        word_timestamps=item.word_timestamps,
        vad_filter=item.enable_vad,
    )
    segments = list(found)
    translation = None
    if item.translate:
        translated, _ = model.transcribe(recording, task="translate", temperature=temperatures)
        translation = written(item.translation, list(translated))
    result = {
        "segments": [{name: getattr(segment, name) for name in SHOWN} for segment in segments],
        "detected_language": info.language,
        "transcription": written(item.transcription, segments),
        "translation": translation,
        "device": device(),
        "model": item.model,
    }
    if item.word_timestamps:
        words = (word for segment in segments for word in segment.words)
        result["word_timestamps"] = [{"word": word.word, "start": word.start, "end": word.end} for word in words]
    return result


def download(url: str, folder: Path) -> str:
    """Return the path of the file at ``url``, in ``folder``: under ``jobs/``, the helper's own place, it would stay."""
    [path] = download_files_from_urls(str(folder), [url])
    if path is None:
        raise ItemFailed(f"Failed to download {url}", type="DownloadFailed")
    return str(path)


def decode(data: str | None, folder: Path) -> str:
    """Return the path of a file in ``folder`` with what ``data`` holds."""
    path = folder / "recording.wav"
    path.write_bytes(base64.b64decode(data or ""))
    return str(path)


def find(name: str) -> Any:
    """Return the model of this name, in place of the one that is loaded."""
    if name not in MODELS:
        raise ValueError(f"Invalid model name: {name}. Available models are: {', '.join(MODELS)}")
    if name not in models:
        models.clear()  # before the next one is loaded: there is no room for two
        models[name] = WhisperModel(name, device=device(), compute_type="float16" if device() == "cuda" else "int8")
    return models[name]


def device() -> str:
    """Return where models run."""
    return "cuda" if rp_cuda.is_available() else "cpu"


def written(form: str, segments: list[Any]) -> str:
    """Return the text of ``segments`` as ``plain_text``, which is also for an unknown form, or in another form."""
    match form:
        case "srt":
            return "".join(f"{number}\n{title(segment, ',')}" for number, segment in enumerate(segments, 1))
        case "vtt":
            return "".join(title(segment, ".") for segment in segments)
        case _:
            return ("\n" if form == "formatted_text" else " ").join(segment.text.lstrip() for segment in segments)


def title(segment: Any, point: str) -> str:
    """Return a segment as a subtitle."""
    text = segment.text.strip().replace("-->", "->")
    return f"{clock(segment.start, point)} --> {clock(segment.end, point)}\n{text}\n\n"


def clock(seconds: float, point: str) -> str:
    """Return ``seconds`` as hours, minutes, seconds and thousandths."""
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{thousandths:03}"
