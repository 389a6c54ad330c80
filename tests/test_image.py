"""The image: built, tested by itself, called through a local endpoint, stopped, pushed and pulled, on a real engine."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
import pytest
import runpod

from aggregating_worker.local import Image as LocalImage
from aggregating_worker.local import LocalEndpoint
from tests.conftest import ROOT, STARTING_POINTS, Bake, free_port, make, required, until

ON_GPU = ("batch", "images")
SMALL = [point for point in STARTING_POINTS if point not in ON_GPU]

HELD = """
import os
from pathlib import Path
from pydantic import BaseModel

class Input(BaseModel):
    items: list[str]

def load() -> None:
    if gate := os.environ.get("LOAD"):
        print("loading", flush=True)
        Path(gate).read_text()

def process(item: str, job: Input) -> str:
    return Path(item).read_text() if item.startswith("/") else item
"""
"""A task that waits for whoever writes into a named pipe."""

BESIDE = """
from pathlib import Path
from pydantic import BaseModel
from shout import shout

class Input(BaseModel):
    items: list[str]

def load() -> None:
    pass

def process(item: str, job: Input) -> str:
    return f"{shout(item)} {Path('data/words.txt').read_text().strip()}"
"""
"""A task with a module and a data file beside it."""

CLASSIFIER = """
import sys, tokenizers, torch, transformers
[folder] = sys.argv[1:]
words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1}, "[UNK]"))
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
tokenizer.save_pretrained(folder)
config = transformers.BertConfig(
    vocab_size=2, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
)
transformers.BertForSequenceClassification(config).save_pretrained(folder)
"""
"""Saves a small model of random weights in a folder."""

PIPELINE = """
import string, sys
from pathlib import Path
import diffusers, torch, transformers
{save_pipeline}
save_pipeline(Path(sys.argv[1]))
"""
"""The same for a pipeline: the function of the bake's own tests, which are not in the image, and need pytest."""


READ_ONLY = ("--read-only", "--tmpfs", "/tmp")

RELATIVE = (ROOT / "library" / "tests" / "tasks" / "relative.py").read_text()
"""A task that writes where it is started, as do the SDK's helpers and the programs that it calls."""


def docker(*arguments: str) -> str:
    finished = subprocess.run(["docker", *arguments], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout.strip()


@dataclass(frozen=True)
class Image:
    """A bake and what was built of it. ``options`` are what ``docker run`` needs for it."""

    project: Path
    name: str
    options: tuple[str, ...] = ()

    def run(self, *command: str) -> str:
        """Return what ``command`` says inside."""
        entry, *arguments = command
        return docker("run", "--rm", "--entrypoint", entry, *self.options, self.name, *arguments)

    def inspect(self, what: str) -> Any:
        return json.loads(docker("image", "inspect", "--format", f"{{{{json {what}}}}}", self.name))

    @property
    def layers(self) -> list[str]:
        layers: list[str] = self.inspect(".RootFS.Layers")
        return layers


@pytest.fixture(scope="session")
def engine() -> Iterator[None]:
    """Require Docker, and leave it as it was but for its build cache."""
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        required("The image is not tested: start Docker to have it built and run.")

    def everything() -> str:
        return docker("ps", "--all", "--quiet") + docker("images", "--all", "--format", "{{.Repository}}:{{.Tag}}")

    before = everything()
    yield
    assert everything() == before


@pytest.fixture(scope="session")
def registry() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture(scope="session")
def build(engine: None, bake: Bake, registry: str) -> Iterator[Callable[[str], Image]]:
    """Bake a starting point and build its image, once."""
    images: dict[str, Image] = {}

    def build(starting_point: str) -> Image:
        if starting_point not in images:
            name = f"{registry}/test/{starting_point}"
            project = bake(starting_point=starting_point, image=name, project_name='A "quoted" $NAME')
            if starting_point in ON_GPU:
                require(base(project))
            (project / ".env").write_text("BUCKET_SECRET_ACCESS_KEY=not-for-the-image\n")
            make(project, "image", "TAG=latest", "SOURCE=https://example.org/worker", "REVISION=0123abc")
            options = model(f"{name}:latest", project) if starting_point in ON_GPU else ()
            images[starting_point] = Image(project, f"{name}:latest", options)
        return images[starting_point]

    yield build
    for image in images.values():
        docker("rmi", "--force", image.name)


def base(project: Path) -> str:
    """Return the base by its tag: where there is no registry, what stands in has another digest."""
    [first, *_] = [line for line in (project / "Dockerfile").read_text().splitlines() if line.startswith("FROM")]
    return first.split()[1].partition("@")[0]


def require(base: str) -> None:
    if not docker("images", "--quiet", base):
        required(f"No image for a GPU is tested, for their base takes several GB: docker pull {base}")


def model(image: str, project: Path) -> tuple[str, ...]:
    """Have a model saved by the image's own packages where Runpod's cache would have it.

    Return the options of ``docker run`` that give it to a worker.
    """
    volume = project / "volume"
    volume.mkdir()
    volume.chmod(0o777)
    mount = ("--volume", f"{volume}:/runpod-volume")
    folder = "/runpod-volume/huggingface-cache/hub/models--tiny--model/snapshots/0"
    docker("run", "--rm", *mount, image, "python", "-c", saving(project), folder)
    return (*mount, "--env", "MODEL_ID=tiny/model")


def saving(project: Path) -> str:
    """Return the code that saves a model for ``project``."""
    tests = (project / "tests" / "conftest.py").read_text()
    functions = [node for node in ast.parse(tests).body if isinstance(node, ast.FunctionDef)]
    save_pipeline = [ast.unparse(function) for function in functions if function.name == "save_pipeline"]
    return PIPELINE.format(save_pipeline=save_pipeline[0]) if save_pipeline else CLASSIFIER


@pytest.fixture(params=STARTING_POINTS)
def image(build: Callable[[str], Image], request: pytest.FixtureRequest) -> Image:
    return build(request.param)


@pytest.fixture
def sync(build: Callable[[str], Image]) -> Image:
    return build("sync")


@pytest.fixture(scope="session")
def held(build: Callable[[str], Image], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """Build ``HELD`` as a user who has edited ``task.py`` would."""
    sync = build("sync")
    project = tmp_path_factory.mktemp("held") / "worker"
    shutil.copytree(sync.project, project)
    (project / "task.py").write_text(HELD)
    make(project, "image", "TAG=held")
    image = Image(project, sync.name.replace(":latest", ":held"))
    yield image
    docker("rmi", "--force", image.name)


@pytest.fixture(scope="session")
def relative(build: Callable[[str], Image], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """Build ``RELATIVE`` with ffmpeg, as root, as a user would who needs both."""
    sync = build("sync")
    project = tmp_path_factory.mktemp("relative") / "worker"
    shutil.copytree(sync.project, project)
    (project / "task.py").write_text(RELATIVE)
    dockerfile = (project / "Dockerfile").read_text()
    assert "# RUN apt-get" in dockerfile
    (project / "Dockerfile").write_text(dockerfile.replace("# RUN apt-get", "RUN apt-get"))
    make(project, "image", "TAG=root", f"BUILD_FLAGS={os.environ.get('BUILD_FLAGS', '')} --build-arg USER=0")
    image = Image(project, sync.name.replace(":latest", ":root"))
    yield image
    docker("rmi", "--force", image.name)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    folder = tmp_path / "gate"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    return folder


@contextmanager
def served(image: Image, *options: str) -> Iterator[tuple[Any, httpx2.Client, Path]]:
    """Serve a local endpoint with a worker of ``image``; yield it, a client of it, and the worker's log."""
    log = image.project.parent / "worker.log"
    with (
        log.open("wb") as output,
        LocalEndpoint(LocalImage(image.name, [*image.options, *options]), log=output) as endpoint,
        httpx2.Client(base_url=endpoint.url, headers={"Authorization": "Bearer test"}, timeout=60) as client,
    ):
        yield endpoint, client, log


@pytest.mark.parametrize(
    "user",
    [
        pytest.param(["--cap-drop", "ALL", "--security-opt", "no-new-privileges"], id="1000"),
        pytest.param(["--user", "0:0"], id="root"),  # who needs a capability to read what others have saved
    ],
)
def test_the_image_tests_itself_with_no_more_than_a_read_only_root_and_a_tmpfs(image: Image, user: list[str]) -> None:
    said = docker("run", "--rm", *image.options, *READ_ONLY, *user, image.name)
    assert "3 items, 0 failed" in said, said  # the SDK cuts a long list


def test_make_run_image_runs_that_test(sync: Image) -> None:
    make(sync.project, "run-image", "TAG=latest")


def test_jobs_through_the_sdks_client(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    job = json.loads((image.project / "test_input.json").read_text())["input"]
    with served(image) as (endpoint, _, log):
        monkeypatch.setattr(runpod, "endpoint_url_base", endpoint.base_url)
        client = runpod.Endpoint("local", api_key="any")
        aggregate = client.run_sync({"input": job}, timeout=60)
        print(log.read_text())
        assert [envelope["success"] for envelope in aggregate] == [True] * 3
        submitted = client.run({"input": job})
        assert list(submitted.stream()) == submitted.output() == aggregate


def test_the_command_line_serves_an_image(sync: Image) -> None:
    line = ["-m", "aggregating_worker", "serve", "--port", "0", "--image", sync.name, "--", "--env", "CHUNK_SIZE=2"]
    with subprocess.Popen([sys.executable, *line], cwd=sync.project, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[1]
        body = (sync.project / "test_input.json").read_text()
        answer = httpx2.post(f"{url}/runsync", content=body, headers={"Authorization": "Bearer any"}, timeout=60)
        process.terminate()
    assert [len(chunk) for chunk in answer.json()["output"]] in ([1, 2], [2, 1])


def test_docker_stop_during_a_job_delivers_it_and_exits_0(held: Image, gate: Path) -> None:
    options = ("--volume", f"{gate}:/gate", "--env", "RUNPOD_LOG_LEVEL=DEBUG")
    with served(held, *options) as (endpoint, client, log):
        job_id = client.post("/run", json={"input": {"items": ["a", "/gate/pipe", "b"]}}).json()["id"]
        assert client.get(f"/stream/{job_id}").json()["stream"][0]["output"]["result"] == "a"
        [worker] = endpoint.workers.running
        with subprocess.Popen(["docker", "stop", docker("ps", "--quiet", "--filter", f"ancestor={held.name}")]):
            until(lambda: "Kill worker" in log.read_text())
            (gate / "pipe").write_text("still here")
        assert worker.exited.result(10) == 0
        state = client.get(f"/status/{job_id}").json()
        assert [envelope["result"] for envelope in state["output"]] == ["a", "still here", "b"]
        assert state["status"] == "COMPLETED"
        assert state["workerId"] == worker.id


def test_docker_stop_during_load_ends_it_at_once(held: Image, gate: Path) -> None:
    with served(held, "--volume", f"{gate}:/gate", "--env", "LOAD=/gate/pipe") as (endpoint, _, log):
        [worker] = endpoint.workers.running
        until(lambda: "loading" in log.read_text())
        docker("stop", docker("ps", "--quiet", "--filter", f"ancestor={held.name}"))
        assert worker.exited.result(10) == 128 + 15  # by SIGTERM, not by the SIGKILL after docker's patience


def test_a_killed_container_is_replaced_and_its_job_done(held: Image, gate: Path) -> None:
    with served(held, "--volume", f"{gate}:/gate") as (endpoint, client, _):
        job_id = client.post("/run", json={"input": {"items": ["a", "/gate/pipe"]}}).json()["id"]
        assert client.get(f"/stream/{job_id}").json()["stream"][0]["output"]["result"] == "a"
        [worker] = endpoint.workers.running
        docker("kill", docker("ps", "--quiet", "--filter", f"ancestor={held.name}"))
        assert worker.exited.result(10) == 128 + 9
        (gate / "pipe").write_text("again")
        until(lambda: client.get(f"/status/{job_id}").json()["status"] == "COMPLETED")
        assert client.get(f"/status/{job_id}").json()["retries"] == 1


def test_it_holds_the_worker_and_what_it_needs_only(image: Image) -> None:
    found = image.run("find", "/app", "-type", "f", "-not", "-name", "*.pyc").splitlines()
    assert sorted(found) == sorted(f"/app/{name}" for name in ["handler.py", "task.py", "test_input.json"])
    tools = "for tool in uv gcc make git; do command -v $tool; done; ls -A /root /var/lib/apt/lists 2>/dev/null; true"
    assert "uv" not in image.run("sh", "-c", tools)
    assert "not-for-the-image" not in docker("history", "--no-trunc", image.name)
    assert image.run("find", "/venv", "/app", "-perm", "/022", "-not", "-type", "l") == ""


def test_what_is_beside_the_task_gets_into_it_and_no_secret_test_or_notebook(sync: Image, tmp_path: Path) -> None:
    project = tmp_path / "more"
    shutil.copytree(sync.project, project)
    (project / "task.py").write_text(BESIDE)
    inside = {"shout.py": "def shout(word):\n    return word.upper()\n", "data/words.txt": "spoken\n"}
    outside = [
        ".env",
        "a.env",
        "keys/cert.pem",
        "id_ed25519",
        "data/.hidden",
        "notes.ipynb",
        "test_more.py",
    ]
    outside += [".git/config", ".venv/lib/a.py", "vendor/more.whl", "tests/more.py", "lib/__pycache__/a.pyc"]
    for name, text in (inside | dict.fromkeys(outside, "not-for-the-image\n")).items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    make(project, "image", "TAG=more")
    more = Image(project, sync.name.replace(":latest", ":more"))
    try:
        job = '{"input": {"items": ["a"]}}'
        assert "'result': 'A spoken'" in docker("run", "--rm", more.name, "python", "handler.py", "--test_input", job)
        found = more.run("find", "/app", "-type", "f", "-not", "-name", "*.pyc").splitlines()
        before = sync.run("find", "/app", "-type", "f", "-not", "-name", "*.pyc").splitlines()
        assert sorted(found) == sorted([*before, *(f"/app/{name}" for name in inside)])
        assert more.layers[:-1] == sync.layers[:-1]
    finally:
        docker("rmi", "--force", more.name)


def test_it_runs_as_a_user_with_a_number_who_owns_nothing_in_it(image: Image) -> None:
    user, _, group = image.inspect(".Config.User").partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert image.run("id", "-u") == user
    assert image.run("find", "/venv", "/app", "-not", "-user", "0") == ""


@pytest.fixture
def download(tmp_path: Path) -> Iterator[str]:
    """A file on a server, for which the SDK's helper needs leave: it is on this machine."""
    (tmp_path / "far.txt").write_text("far away")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever).start()
        yield f"download http://127.0.0.1:{server.server_port}/far.txt"
        server.shutdown()


def test_a_task_may_write_where_it_starts_and_call_ffmpeg_whoever_runs_it(relative: Image, download: str) -> None:
    """As it may in the local test and on the local endpoint, which the library's ``test_start_folder.py`` tells."""
    items = {
        "read test_input.json": (relative.project / "test_input.json").read_text(),
        "write notes.txt": "written",
        "upload notes.txt": "simulated_uploaded written",
        download: "downloaded_filesfar away",
        "ffmpeg -f lavfi -i color=red:size=2x2 -frames:v 1 red.png": "red.png True",
    }
    job = {"input": {"items": [*items]}}
    options = ("--env", "RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS=1", *READ_ONLY)
    line = (relative.name, "python", "handler.py", "--test_input", json.dumps(job))
    said = docker("run", "--rm", "--network", "host", *options, *line)
    printed = said.partition("Job result: ")[2].splitlines()[0]
    with served(relative, "--user", "1000:1000", *options) as (_, client, _):
        answers = [ast.literal_eval(printed), client.post("/runsync", json=job).json()]
    for answer in answers:
        assert [envelope.get("result", envelope) for envelope in answer["output"]] == [*items.values()]


def test_with_user_0_it_may_write_what_belongs_to_root(sync: Image, relative: Image, tmp_path: Path) -> None:
    """As a network volume does."""
    assert relative.inspect(".Config.User") == "0:0"
    write = ("--rm", "--volume", f"{tmp_path}:/runpod-volume", "--entrypoint", "touch")
    tmp_path.chmod(0o755)
    docker("run", *write, relative.name, "/runpod-volume/written")
    assert (tmp_path / "written").exists()
    finished = subprocess.run(["docker", "run", *write, sync.name, "/runpod-volume/other"], capture_output=True)
    assert b"Permission denied" in finished.stderr


def test_a_system_package_is_a_layer_and_changes_no_other(sync: Image, relative: Image) -> None:
    [_] = [layer for layer in relative.layers[:-1] if layer not in sync.layers]
    assert [layer for layer in relative.layers if layer in sync.layers] == sync.layers[:-1]


def test_its_labels_say_what_it_is(image: Image) -> None:
    labels = image.inspect(".Config.Labels")
    assert {name.removeprefix("org.opencontainers.image."): text for name, text in labels.items()} == {
        "title": 'A "quoted" $NAME',
        "description": "Takes a list of items, streams each result as it is ready, and returns all of them.",
        "source": "https://example.org/worker",
        "revision": "0123abc",
    }


@pytest.mark.parametrize("starting_point", SMALL)
def test_it_adds_at_most_300_mb_to_its_base(build: Callable[[str], Image], starting_point: str) -> None:
    image = build(starting_point)
    name = base(image.project)
    if not docker("images", "--quiet", name):  # newer engines do not keep what a build has pulled
        docker("pull", name)
    assert image.inspect(".Size") - int(docker("image", "inspect", "-f", "{{.Size}}", name)) <= 300_000_000


def test_an_edit_of_the_task_changes_the_last_layer_only(sync: Image, held: Image) -> None:
    assert held.layers[:-1] == sync.layers[:-1]
    assert held.layers[-1] != sync.layers[-1]


def test_the_same_inputs_give_the_same_layers(sync: Image, tmp_path: Path) -> None:
    """Whatever the times and the modes that a clone has given its files."""
    project = tmp_path / "clone"
    shutil.copytree(sync.project, project, copy_function=shutil.copyfile)
    for path in project.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    make(project, "image", "TAG=again", f"BUILD_FLAGS={os.environ.get('BUILD_FLAGS', '')} --no-cache")
    again = Image(project, sync.name.replace(":latest", ":again"))
    assert again.layers == sync.layers
    docker("rmi", again.name)


def test_a_task_that_is_no_python_is_not_built(sync: Image, tmp_path: Path) -> None:
    project = tmp_path / "broken"
    shutil.copytree(sync.project, project)
    (project / "task.py").write_text("def process(item, job:\n")
    built = subprocess.run(["make", "image", "TAG=broken"], cwd=project, capture_output=True, text=True)
    assert built.returncode
    assert "SyntaxError" in built.stderr


def test_it_comes_back_from_a_registry_as_it_went_there(sync: Image, registry: str) -> None:
    line = ("--network", "host", "--env", f"REGISTRY_HTTP_ADDR={registry}", "registry:2")
    server = docker("run", "--detach", "--rm", *line)
    try:
        until(lambda: _answers(f"http://{registry}/v2/"))
        layers = sync.layers
        make(sync.project, "push", "TAG=latest")
        docker("rmi", sync.name)
        docker("pull", sync.name)
        assert sync.layers == layers
        make(sync.project, "run-image", "TAG=latest")
    finally:
        docker("stop", server)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url).is_success
    except httpx2.TransportError:
        return False
