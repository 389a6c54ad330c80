"""Which folder a model is loaded from, which are refused with a sentence, and what a worker without GPU does."""

import ctypes
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregating_worker import find_device, find_model, model
from aggregating_worker.refusal import Refused
from tests.conftest import LIBRARY, Caller, Serve

A, B, C = (digit * 40 for digit in "abc")
"""Commits."""
FILES = {"config.json": "{}", "model.safetensors": "weights", "unet/weights.bin": "more"}
SHARDS = {
    "model.safetensors.index.json": json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}),
    "one.safetensors": "1",
    "two.safetensors": "2",
}
Check = Callable[..., str]


class Cache:
    """Both places of the platform's cache, laid out in ``folder``; files as huggingface_hub keeps them."""

    def __init__(self, folder: Path) -> None:
        self.hub = folder / "hub"
        self.store = folder / "store"

    def repository(self, model_id: str) -> Path:
        return self.hub / f"models--{model_id.replace('/', '--')}"

    def snapshot(self, commit: str, files: Mapping[str, str] = FILES, *refs: str, model_id: str = "tiny/model") -> Path:
        """Add a revision: blobs, links to them, and the branches and tags that are at it."""
        repository = self.repository(model_id)
        folder = repository / "snapshots" / commit
        for name, text in {**files, "which": commit}.items():
            blob = repository / "blobs" / etag(text)
            write(blob, text)
            link = folder / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
        for ref in refs:
            write(repository / "refs" / ref, commit)
        return folder

    def stored(self, revision: str, files: Mapping[str, str] = FILES, model_id: str = "tiny/model") -> Path:
        folder = self.store / model_id / revision
        for name, text in {**files, "which": revision}.items():
            write(folder / name, text)
        return folder


def etag(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """On the platform, where nothing is allowed but what it says."""
    for name in ("MODEL_REVISION", "MODEL_DOWNLOAD", "ALLOW_CPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RUNPOD_POD_ID", "pod")
    cache = Cache(tmp_path)
    monkeypatch.setattr(model, "HUB_CACHE", cache.hub)
    monkeypatch.setattr(model, "MODEL_STORE", cache.store)
    return cache


@pytest.fixture
def refusal(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Return the sentence with which a model is refused, on the platform only."""

    def check(model_id: str = "tiny/model") -> str:
        with pytest.raises(Refused) as refused:
            find_model(model_id)
        monkeypatch.delenv("RUNPOD_POD_ID")
        assert find_model(model_id) == model_id
        monkeypatch.setenv("RUNPOD_POD_ID", "pod")
        return str(refused.value)

    return check


def test_it_is_the_revision_of_main_and_not_the_newest(cache: Cache) -> None:
    main = cache.snapshot(B, FILES, "main")
    for number, commit in enumerate((A, C)):
        os.utime(cache.snapshot(commit), (4_000_000_000 + number,) * 2)
    assert find_model("tiny/model") == str(main)


@pytest.mark.parametrize("wanted", [A, A[:7], "v1", "refs/pr/1", "feature/x"])
def test_model_revision_is_a_commit_its_beginning_a_branch_or_a_tag(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    cache.snapshot(B, FILES, "main")
    meant = cache.snapshot(A, FILES, "v1", "refs/pr/1", "feature/x")
    monkeypatch.setenv("MODEL_REVISION", wanted)
    assert find_model("tiny/model") == str(meant)


@pytest.mark.parametrize("wanted", ["", "main"])
def test_the_only_revision_is_it_where_nothing_says_which_is_main(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    monkeypatch.setenv("MODEL_REVISION", wanted)
    only = cache.snapshot(A)
    write(cache.repository("tiny/model") / "refs" / "main", "\n")
    assert find_model("tiny/model") == str(only)


@pytest.mark.parametrize("pod", ["", "pod"])
def test_several_revisions_of_which_none_is_named_are_refused_anywhere(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, pod: str
) -> None:
    cache.snapshot(A)
    cache.stored(B)
    monkeypatch.setenv("RUNPOD_POD_ID", pod)
    with pytest.raises(Refused, match=rf"several revisions .* MODEL_REVISION .*: {A}, {B}\.$"):
        find_model("tiny/model")


ABSENT = [C, C[:7], "a", "dev", "../refs/main", "/etc/hostname", "..", "\udcff", "x" * 5_000]


@pytest.mark.parametrize("wanted", ABSENT, ids=ascii)
def test_a_revision_that_is_not_there_is_refused(
    cache: Cache, refusal: Check, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    cache.snapshot(A, FILES, "main")
    cache.stored(A)
    monkeypatch.setenv("MODEL_REVISION", wanted)
    said = refusal()
    assert f"in the revision {A}, and not in " in said
    assert len(said) < 1_000


def test_a_beginning_of_two_commits_is_refused(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    for last in "12":
        cache.snapshot(A[1:] + last)
    monkeypatch.setenv("MODEL_REVISION", A[:8])
    with pytest.raises(Refused, match="several revisions"):
        find_model("tiny/model")


def test_a_main_of_which_nothing_is_there_is_refused(cache: Cache, refusal: Check) -> None:
    """The library of the hub notes the commit before it fetches the first file."""
    cache.snapshot(A)
    write(cache.repository("tiny/model") / "refs" / "main", B)
    assert f"not in main ({B})" in refusal()


def test_the_store_is_a_place_like_the_cache(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = cache.stored(A), cache.stored(B)
    monkeypatch.setenv("MODEL_REVISION", A)
    assert find_model("tiny/model") == str(one)
    monkeypatch.setenv("MODEL_REVISION", B[:10])
    assert find_model("tiny/model") == str(other)


def test_what_the_cache_says_of_main_holds_for_the_store(cache: Cache) -> None:
    cache.stored(A)
    write(cache.repository("tiny/model") / "refs" / "main", B)
    meant = cache.stored(B)
    assert find_model("tiny/model") == str(meant)


def test_the_huggingface_layout_in_the_store_is_found(cache: Cache) -> None:
    folder = cache.store / "tiny/model" / A
    write(folder / "config.json", "{}")
    write(folder / "snapshots" / A / "config.json", "{}")
    assert find_model("tiny/model") == str(folder / "snapshots" / A)


def test_of_two_places_the_complete_one_is_taken(cache: Cache, refusal: Check) -> None:
    cached, stored = cache.snapshot(A, FILES, "main"), cache.stored(A)
    assert find_model("tiny/model") == str(cached)
    (cached / "model.safetensors").resolve().unlink()
    assert find_model("tiny/model") == str(stored)
    write(stored / "model.safetensors.incomplete", "")
    said = refusal()
    assert f"in {cached}, model.safetensors leads nowhere" in said
    assert f"in {stored}, the download of model.safetensors.incomplete has not ended" in said


INDEX = "model.safetensors.index.json"
FAULTS: list[tuple[Mapping[str, str], str]] = [
    ({"model.safetensors.incomplete": "half", "model/x": ""}, "the download of model.safetensors.incomplete"),
    ({**SHARDS, INDEX: SHARDS[INDEX].replace("two", "three")}, f"{INDEX} names three.safetensors"),
    ({f"unet/{name}": text for name, text in SHARDS.items() if name != "two.safetensors"}, f"unet/{INDEX} names two"),
    ({INDEX: SHARDS[INDEX]}, f"{INDEX} names one.safetensors"),
    ({INDEX: '{"weight_map": {"a'}, f"{INDEX} cannot be read"),
    ({INDEX: "[" * 100_000}, f"{INDEX} cannot be read"),
    ({INDEX: '{"weight_map": {"a": 7, "b": "../../../x", "c": "\\u0000"}}'}, f"{INDEX} names "),
]


@pytest.mark.parametrize(("files", "fault"), FAULTS, ids=[fault for _, fault in FAULTS])
def test_what_lacks_a_file_is_refused_and_the_file_named(
    cache: Cache, refusal: Check, files: Mapping[str, str], fault: str
) -> None:
    cache.snapshot(A, files)
    assert fault in refusal()


def test_a_download_that_has_begun_or_left_nothing_is_refused(cache: Cache, refusal: Check) -> None:
    folder = cache.snapshot(A)
    part = folder.parents[1] / "blobs" / f"{etag('to come')}.1a2b3c4d.incomplete"
    write(part, "to")
    assert f"the download of {part.name} has not ended" in refusal()
    part.unlink()
    assert find_model("tiny/model") == str(folder)
    cache.repository("tiny/empty").joinpath("snapshots", A).mkdir(parents=True)
    assert "it is empty" in refusal("tiny/empty")


def test_a_link_that_leads_to_itself_is_refused(cache: Cache, refusal: Check) -> None:
    link = cache.snapshot(A) / "unet" / "round"
    link.symlink_to(link)
    assert "unet/round leads nowhere" in refusal()


def begin_another(repository: Path) -> None:
    """Note the files of revision A, as huggingface_hub does, and begin to fetch a file that is not among them."""
    files = {"model.safetensors": {"blob_id": etag("weights")}}
    write(repository / "trees" / f"{A}.json", json.dumps({"files": files}))
    write(repository / "blobs" / f"{etag('to come')}.incomplete", "to")


OTHERS: dict[str, Callable[[Cache], object]] = {
    "another model": lambda cache: write(cache.repository("tiny/other") / "blobs" / "0.incomplete", ""),
    "a longer name": lambda cache: cache.snapshot(A, {"x.incomplete": ""}, model_id="tiny/model-2"),
    "left over": lambda cache: write(
        cache.repository("tiny/model") / "blobs" / f"{etag('weights')}.9f8e7d6c.incomplete", "wei"
    ),
    "another revision": lambda cache: begin_another(cache.repository("tiny/model")),
    "a branch": lambda cache: write(cache.repository("tiny/model") / "refs" / "dev", C),
    "a lock": lambda cache: write(cache.hub / ".locks" / "models--tiny--model" / "0.lock", ""),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_what_is_of_another_model_revision_or_time_does_not_count(
    cache: Cache, other: Callable[[Cache], object]
) -> None:
    folder = cache.snapshot(A, {**FILES, **SHARDS})
    other(cache)
    assert find_model("tiny/model") == str(folder)


@pytest.mark.parametrize(
    "index", [SHARDS[INDEX].replace("safetensors", "bin"), '{"vectors": 7}', "7", '{"weight_map": [[]]}']
)
def test_an_index_of_a_format_that_was_not_fetched_or_of_something_else_names_nothing(cache: Cache, index: str) -> None:
    folder = cache.snapshot(A, {**FILES, "pytorch_model.bin.index.json": index})
    assert find_model("tiny/model") == str(folder)


@pytest.mark.parametrize(
    "beside",
    ["training_args.bin", "adapter_model.safetensors", "pytorch_model-00001-of-00002.bin", "vectors.index.json"],
)
def test_an_index_of_which_nothing_is_there_is_refused_where_no_other_file_has_all_weights(
    cache: Cache, refusal: Check, beside: str
) -> None:
    cache.snapshot(A, {"config.json": "{}", INDEX: SHARDS[INDEX], beside: "{}"})
    assert f"{INDEX} names " in refusal()


@pytest.mark.parametrize("model_id", ["gpt2", "Tiny/Model.v2_x", "a/b-c"])
def test_a_name_has_an_organization_or_none(cache: Cache, model_id: str) -> None:
    folder = cache.snapshot(A, model_id=model_id)
    cache.stored(B, model_id=f"{model_id.partition('/')[0]}/other")
    assert find_model(model_id) == str(folder)


def test_a_name_in_another_case_is_the_same_model_and_the_exact_one_goes_first(cache: Cache) -> None:
    small = cache.snapshot(A, model_id="tiny/model")
    assert find_model("Tiny/Model") == str(small)
    exact = cache.snapshot(A, model_id="Tiny/Model")
    assert find_model("Tiny/Model") == str(exact)
    assert find_model("tiny/model") == str(small)
    stored = cache.stored(A, model_id="an-org/name")
    assert find_model("An-Org/Name") == str(stored)


HOSTILE = ["../none", "a/../b", "a/..", "/no/such/folder", "", " ", "a b", "a/b/c", "a--b/c", "https://hf.co/a/b"]
HOSTILE += ["x" * 5_000 + "/y" * 9, "a/b:v1", "a/b@v1", "~/model", "a\nb", "\0", "\udcff", "-a/b", "a/"]


@pytest.mark.parametrize("model_id", HOSTILE, ids=ascii)
def test_what_is_no_name_is_refused_everywhere(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model_id: str
) -> None:
    monkeypatch.chdir(tmp_path)
    cache.snapshot(A)
    monkeypatch.setenv("MODEL_DOWNLOAD", "1")
    with pytest.raises(Refused, match="There is no model"):
        find_model(model_id)


def test_a_folder_is_a_model_wherever_it_lies(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a folder"
    for name, text in FILES.items():
        write(folder / name, text)
    assert find_model(str(folder)) == str(folder)
    monkeypatch.chdir(tmp_path)
    assert find_model("a folder") == "a folder"
    monkeypatch.delenv("RUNPOD_POD_ID")
    write(folder / ".cache" / "huggingface" / "download" / "aGFzaA==.0123.1a2b3c4d.incomplete", "half")
    with pytest.raises(Refused, match=r"not complete: the download of aGFzaA==\.0123"):
        find_model(str(folder))
    write(folder / ".cache" / "huggingface" / "download" / "model.safetensors.metadata", f"{A}\n0123\n1700000000.0\n")
    assert find_model(str(folder)) == str(folder)


@pytest.mark.parametrize(
    ("pod", "download", "refused"),
    [("pod", "", True), ("pod", "0", True), ("pod", "1", False), ("pod", "True", False), ("", "", False)],
)
def test_what_is_not_in_the_cache_is_fetched_where_that_is_allowed(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, pod: str, download: str, refused: bool
) -> None:
    monkeypatch.setenv("RUNPOD_POD_ID", pod)
    monkeypatch.setenv("MODEL_DOWNLOAD", download)
    if refused:
        with pytest.raises(Refused, match=r"tiny/model is not in Runpod's cache\. .*MODEL_DOWNLOAD=1"):
            find_model("tiny/model")
    else:
        assert find_model("tiny/model") == "tiny/model"


Revisions = dict[str, tuple[bool, bool]]
"""Of some commits: whether the cache has them, and the store, each complete."""


@given(
    hub=st.dictionaries(st.sampled_from((A, B, C)), st.booleans()),
    store=st.dictionaries(st.sampled_from((A, B, C)), st.booleans()),
    refs=st.dictionaries(st.sampled_from(("main", "dev")), st.sampled_from((A, B, C, ""))),
    wanted=st.sampled_from(("", "main", "dev", "other", A, B[:9])),
)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_is_the_complete_one_that_is_meant_or_none(
    tmp_path_factory: pytest.TempPathFactory,
    hub: dict[str, bool],
    store: dict[str, bool],
    refs: dict[str, str],
    wanted: str,
) -> None:
    cache = Cache(tmp_path_factory.mktemp("cache"))
    for commit, complete in hub.items():
        folder = cache.snapshot(commit, {f"{commit[0]}.bin": commit})
        if not complete:
            (folder / f"{commit[0]}.bin").resolve().unlink()
    for commit, complete in store.items():
        cache.stored(commit, FILES if complete else {**FILES, "x.incomplete": ""})
    for name, commit in refs.items():
        write(cache.repository("tiny/model") / "refs" / name, commit)

    known = hub.keys() | store.keys()
    meant: str | None = refs.get(wanted or "main") or {"": "main", B[:9]: B}.get(wanted, wanted)
    if meant == "main":
        meant = next(iter(known)) if len(known) == 1 else None
    whole = [place for place in (hub, store) if meant is not None and place.get(meant)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "HUB_CACHE", cache.hub)
        patch.setattr(model, "MODEL_STORE", cache.store)
        patch.setenv("RUNPOD_POD_ID", "pod")
        patch.setenv("MODEL_REVISION", wanted)
        patch.delenv("MODEL_DOWNLOAD", raising=False)
        if not whole:
            with pytest.raises(Refused):
                find_model("tiny/model")
        else:
            found = Path(find_model("tiny/model"))
            assert found.is_relative_to(cache.hub if whole[0] is hub else cache.store)
            assert (found / "which").read_text() == meant


class Torch(SimpleNamespace):
    """As much of PyTorch as is asked."""

    def __init__(self, available: bool, built: str | None) -> None:
        super().__init__(cuda=SimpleNamespace(is_available=lambda: available), version=SimpleNamespace(cuda=built))


@pytest.fixture
def machine(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make this a machine with that PyTorch, and that driver, as its library says it."""

    def make(
        *, available: bool = False, built: str | None = "12.8", driver: int | None = None, status: int = 0
    ) -> None:
        def version(number: Any) -> int:
            number._obj.value = driver
            return status

        def load(name: str) -> Any:
            if not driver:
                raise OSError(f"{name}: cannot open shared object file")
            return SimpleNamespace(cuDriverGetVersion=version)

        monkeypatch.setitem(sys.modules, "torch", Torch(available, built))
        monkeypatch.setattr(ctypes, "CDLL", load)

    return make


@pytest.mark.parametrize(
    ("has", "said", "way"),
    [
        (
            {"driver": 12_040},
            "the driver of this host is for CUDA 12.4, and the image's PyTorch is for CUDA 12.8",
            "min",
        ),
        (
            {"driver": 13_000, "built": "13.2"},
            "for CUDA 13.0, and the image's PyTorch is for CUDA 13.2",
            "minCudaVersion",
        ),
        ({}, "this host has no NVIDIA driver, and the image's PyTorch is for CUDA 12.8", "Give the endpoint a GPU"),
        ({"driver": 12_080, "status": 3}, "this host has no NVIDIA driver", "Give the endpoint a GPU"),
        ({"driver": 12_080, "built": None}, "the image's PyTorch is built without CUDA", "on a base with CUDA"),
    ],
)
def test_without_a_gpu_a_worker_on_the_platform_is_refused_with_both_versions(
    machine: Callable[..., None], has: dict[str, Any], said: str, way: str
) -> None:
    machine(**has)
    with pytest.raises(Refused) as refused:
        find_device()
    assert said in str(refused.value)
    assert way in str(refused.value)
    if has == {"driver": 12_040}:
        assert f"failed: {refused.value}" in " ".join((LIBRARY.parent / "docs" / "models.md").read_text().split())


@pytest.mark.parametrize(("name", "value"), [("ALLOW_CPU", "1"), ("RUNPOD_POD_ID", "")])
def test_the_cpu_will_do_where_it_is_allowed_and_off_the_platform(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    machine(driver=12_040)
    monkeypatch.setenv(name, value)
    assert find_device() == "cpu"


@pytest.mark.parametrize("pod", ["pod", ""])
def test_a_gpu_is_used_wherever_there_is_one(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch, pod: str
) -> None:
    monkeypatch.setenv("RUNPOD_POD_ID", pod)
    machine(available=True)
    assert find_device() == "cuda"


def lines(caller: Caller) -> list[str]:
    return [json.loads(line)["message"] for line in caller.log.read_text().splitlines() if line.startswith("{")]


@pytest.mark.parametrize("processes", ["0", "1", "2"])
def test_the_log_says_which_model_it_is_and_where_it_lies(serve: Serve, tmp_path: Path, processes: str) -> None:
    cache = Cache(tmp_path)
    folder = cache.snapshot(A, FILES, "main")
    caller = serve("with_model", HUB_CACHE=str(cache.hub), PROCESSES=processes)
    assert [each["result"] for each in caller.runsync(["model", "device"])["output"]] == [str(folder), "cpu"]
    told = [line for line in lines(caller) if line == f"The model is tiny/model, revision {A}, in {folder}"]
    assert len(told) == max(1, int(processes))


@pytest.mark.parametrize("processes", ["0", "1", "2"])
@pytest.mark.parametrize(
    ("refusing", "files", "sentence"),
    [
        ("MODEL_DOWNLOAD", {"x.incomplete": ""}, "The model tiny/model is not complete: in "),
        ("ALLOW_CPU", FILES, "There is no GPU that can be used: "),
    ],
)
def test_a_worker_that_is_refused_says_so_once_and_without_a_traceback_and_takes_no_job(
    serve: Serve, tmp_path: Path, processes: str, refusing: str, files: Mapping[str, str], sentence: str
) -> None:
    cache = Cache(tmp_path)
    cache.snapshot(A, files)
    caller = serve("with_model", HUB_CACHE=str(cache.hub), PROCESSES=processes, **{refusing: "0"})
    job_id = caller.run(["model"])
    [worker] = caller.endpoint.workers.running
    assert worker.exited.result(20) == 1
    assert caller.status(job_id)["status"] == "IN_QUEUE"
    told = [line for line in lines(caller) if line.startswith(f"load() in task.py failed: {sentence}")]
    assert 1 <= len(told) <= max(1, int(processes))
    assert "Traceback" not in caller.log.read_text()


def test_a_worker_of_the_local_endpoint_may_fetch_its_model_and_do_without_gpu(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ALLOW_CPU", "MODEL_DOWNLOAD"):
        monkeypatch.delenv(name, raising=False)
    caller = serve("with_model", HUB_CACHE=str(tmp_path))
    assert [each["result"] for each in caller.runsync(["model", "device"])["output"]] == ["tiny/model", "cpu"]


def test_unless_the_environment_says_otherwise(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_DOWNLOAD", "0")
    caller = serve("with_model", HUB_CACHE=str(tmp_path))
    [worker] = caller.endpoint.workers.running
    assert worker.exited.result(20) == 1
    assert "The model tiny/model is not in Runpod's cache" in caller.log.read_text()
