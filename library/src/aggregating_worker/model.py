"""The model that a task loads, from where the platform has put it, and the device that it goes to."""

import ctypes
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from aggregating_worker.refusal import Refused
from aggregating_worker.sentence import one_line

HUB_CACHE = Path("/runpod-volume/huggingface-cache/hub")
"""The platform's cache, in Hugging Face's own layout (Runpod's docs, serverless/endpoints/model-caching)."""
MODEL_STORE = Path("/runpod/model-store/huggingface")
"""The platform's other place for it: ``ORG/NAME/REVISION`` (runpod-python on GitHub, ``runpod/apps/model.py``)."""
NAME = re.compile(r"(?!.*(--|\.\.))\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
"""What the Hugging Face Hub has as the name of a model."""
ABBREVIATED = re.compile(r"[0-9a-f]{7,39}|", re.ASCII)
"""The beginning of a commit, from as many digits as git shows; with none, it is that of any."""
WHOLE = re.compile(r"((diffusion_)?pytorch_)?model\.(bin|safetensors)")
"""A file with all of a model's weights (Transformers, Diffusers)."""

_log = logging.getLogger(__name__)


class Revision(NamedTuple):
    """A revision of a model, a commit as a rule, and the folder with its files."""

    name: str
    folder: Path


def find_model(model_id: str) -> str:
    """Return the folder of a model, or ``model_id`` itself where Hugging Face's library is to fetch it.

    ``model_id`` is a folder, or a name on the Hub, ``org/name``. That is taken from the platform's cache, in the
    revision of ``MODEL_REVISION`` (a commit, its beginning, a branch or a tag), else of ``main``. What is not there,
    or lacks files, is fetched; on the platform (``RUNPOD_POD_ID`` is set) only with ``MODEL_DOWNLOAD=1``. A line in the
    log says which model it is, and where.

    Raises ``Refused``, with a sentence, if there is none that could be loaded.
    """
    if os.path.isdir(model_id):  # noqa: PTH112  # the method of ``Path`` raises where a name is too long
        if fault := _fault(Path(model_id)):
            raise Refused(f"The model in {model_id} is not complete: {fault}.")
        _log.info("The model is in %s", model_id)
        return model_id
    if not NAME.fullmatch(model_id):
        told = repr(one_line(model_id))
        raise Refused(f"There is no model {told}: it is no folder here, and no name on the Hub, such as org/name.")
    try:
        revision, folder = _cached(model_id, os.environ.get("MODEL_REVISION") or "main")
    except LookupError as missing:
        if is_refused("MODEL_DOWNLOAD"):
            raise Refused(
                f"{missing}. Have the endpoint cache this model, or set MODEL_DOWNLOAD=1 to fetch it at each start."
            ) from None
        _log.info("%s: Hugging Face's library looks for it", missing)
        return model_id
    _log.info("The model is %s, revision %s, in %s", model_id, revision, folder)
    return str(folder)


def find_device() -> str:
    """Return ``cuda``, or ``cpu`` where PyTorch has no GPU to use; on the platform only with ``ALLOW_CPU=1``.

    Raises ``Refused``, with a sentence, if it may not be the CPU, which would serve slowly and at the price of the GPU.
    """
    torch = import_module("torch")
    if torch.cuda.is_available():
        return "cuda"
    if is_refused("ALLOW_CPU"):
        driver, built = driver_cuda(), torch.version.cuda
        has = f"the driver of this host is for CUDA {driver}" if driver else "this host has no NVIDIA driver"
        needs = f"the image's PyTorch is for CUDA {built}" if built else "the image's PyTorch is built without CUDA"
        way = "Have the endpoint take hosts with a newer driver (minCudaVersion or allowedCudaVersions)"
        if not (driver and built):
            way = "Give the endpoint a GPU" if built else "Build the image on a base with CUDA"
        raise Refused(
            f"There is no GPU that can be used: {has}, and {needs}. {way}, or set ALLOW_CPU=1 to run on the CPU."
        )
    return "cpu"


def is_refused(permission: str) -> bool:
    """Whether this is the platform, and the variable ``permission`` does not allow what is done elsewhere."""
    allowed = os.environ.get(permission, "").lower() in ("1", "on", "true", "yes")
    return bool(os.environ.get("RUNPOD_POD_ID")) and not allowed


def driver_cuda() -> str:
    """Return the newest CUDA that this machine's NVIDIA driver knows, as ``12.8``; an empty text if there is none."""
    version = ctypes.c_int()
    try:
        status = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return ""
    return "" if status else f"{version.value // 1000}.{version.value % 1000 // 10}"


def _cached(model_id: str, wanted: str) -> Revision:
    """Return the ``wanted`` revision from the platform's cache.

    Raises ``LookupError`` if it is not there, or not whole; ``Refused`` if there are several, and none is ``wanted``.
    """
    repositories = _named(HUB_CACHE, f"models--{model_id.replace('/', '--')}")
    revisions = [Revision(folder.name, folder) for each in repositories for folder in _folders(each / "snapshots")]
    organization, _, name = model_id.rpartition("/")
    stored = [folder for each in _named(MODEL_STORE, organization) for folder in _named(each, name)]
    revisions += [Revision(folder.name, _within(folder)) for each in stored for folder in _folders(each)]
    if not revisions:
        raise LookupError(f"The model {model_id} is not in Runpod's cache")

    names = sorted({revision.name for revision in revisions})
    shown = f"{', '.join(names[:3])}{' and others' if names[3:] else ''}"
    commit = next(filter(None, (_commit(each, wanted) for each in repositories)), wanted)
    beginning = "" if commit == "main" else commit  # if nothing says which is that of main, it is the only one
    chosen = [name for name in names if name == commit]
    if not chosen and ABBREVIATED.fullmatch(beginning):
        chosen = [name for name in names if name.startswith(beginning)]
    if not chosen:
        named = one_line(wanted if wanted == commit else f"{wanted} ({commit})")
        raise LookupError(f"Runpod's cache has the model {model_id} in the revision {shown}, and not in {named}")
    if len(chosen) > 1:
        raise Refused(
            f"Runpod's cache has several revisions of {model_id}, and MODEL_REVISION does not say which: {shown}."
        )

    faults = []
    for revision in revisions:
        if revision.name in chosen:
            if not (fault := _fault(revision.folder)):
                return revision
            faults.append(f"in {revision.folder}, {fault}")
    raise LookupError(f"The model {model_id} is not complete: {'; '.join(faults)}")


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir())
    except OSError:
        return []


def _named(folder: Path, name: str) -> list[Path]:
    """Return the folders of this name, and after it those in another case: the platform may write it in small letters.

    A model that is named so in Runpod's docs (serverless/endpoints/model-caching) has capitals on the Hub.
    """
    alike = [entry for entry in _folders(folder) if entry.name.lower() == name.lower()]
    return sorted(alike, key=lambda entry: entry.name != name)


def _within(folder: Path) -> Path:
    """Return where in a folder of the store the files are: workers have also found Hugging Face's layout in there."""
    snapshot = folder / "snapshots" / folder.name
    return snapshot if snapshot.is_dir() else folder


def _commit(repository: Path, wanted: str) -> str:
    """Return the commit of a branch or a tag, or an empty text if ``wanted`` is none that is known here."""
    try:
        text = "" if ".." in wanted or wanted.startswith("/") else (repository / "refs" / wanted).read_text()
    except (OSError, ValueError):
        return ""
    return text.strip()


def _fault(folder: Path) -> str:
    """Say what is missing in a model's ``folder``; an empty text if nothing is, as far as can be told."""
    files = [Path(top, name) for top, folders, names in os.walk(folder) for name in sorted(folders + names)]
    if not files:
        return "it is empty, or cannot be read"
    for file in files:
        if not os.access(file, os.R_OK):
            return f"{file.relative_to(folder)} leads nowhere, or cannot be read"
    for file in files:
        if file.name.endswith(".index.json") and (fault := _missing(file)):
            return f"{file.relative_to(folder)} {fault}"
    for part in [*files, *_blobs(folder)]:
        if part.suffix == ".incomplete" and not _is_left_over(part):
            return f"the download of {part.name} has not ended"
    return ""


def _missing(index: Path) -> str:
    """Say which file with weights ``index`` names that is not there; an empty text if all are.

    Of a format of which none is there, none is missed where another has all of them: some fetch one format only.
    """
    try:
        shards = _shards(index)
    except (OSError, ValueError, RecursionError):
        return "cannot be read"
    missing = [shard for shard in shards if not shards[shard]]
    if missing and len(missing) == len(shards):
        for other in index.parent.iterdir():
            with suppress(OSError, ValueError, RecursionError):
                if WHOLE.fullmatch(other.name):
                    return ""
                if other.name.endswith(".index.json") and (found := _shards(other)) and all(found.values()):
                    return ""
    return f"names {missing[0]}, which is not there" if missing else ""


def _shards(index: Path) -> dict[str, bool]:
    """Return whether each file with weights that ``index`` names is there, in their order."""
    try:
        shards = sorted({str(shard) for shard in json.loads(index.read_bytes())["weight_map"].values()})
    except (AttributeError, KeyError, TypeError):  # it is an index of something else
        return {}
    return {shard: os.path.exists(index.parent / shard) for shard in shards}  # noqa: PTH110  # the same


def _blobs(folder: Path) -> Iterator[Path]:
    """Yield the downloads that have begun for the snapshot ``folder``, in the place where its files really lie.

    Of several snapshots, those of another are left out where Hugging Face's library has noted which files this one has
    (2.4.0, ``_tree_cache.py``).
    """
    if folder.parent.name != "snapshots":
        return
    repository = folder.parent.parent
    try:
        listed = (repository / "trees" / f"{folder.name}.json").read_text()
    except (OSError, ValueError):
        listed = ""
    for part in sorted((repository / "blobs").glob("*.incomplete")):
        if not listed or part.name.partition(".")[0] in listed:
            yield part


def _is_left_over(part: Path) -> bool:
    """Whether the file that ``part`` was to become is there: a second download may have ended where one was killed.

    It is ``ETAG.incomplete`` beside ``ETAG``, or ``HASH.ETAG.incomplete`` beside a ``.metadata`` that has the etag; in
    either a random number may follow the etag (huggingface_hub 2.4.0, ``file_download.py`` and ``_local_folder.py``).
    """
    first, second, *_ = part.name.split(".")
    if part.parent.name == "blobs":
        return (part.parent / first).exists()
    noted = (file for file in part.parent.glob("*.metadata") if file.is_file())
    return any(second in file.read_text(errors="replace").split() for file in noted)
