"""What a user of each bake would run: it is installed from its locks and its wheel."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, STARTING_POINTS, Bake, make
from tests.hub import COMMIT, served
from tests.test_image import CLASSIFIER

MODELS = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
LOAD = """
import sys
from pathlib import Path
from aggregating_worker import model
model.HUB_CACHE = Path(sys.argv[1])
import task
task.load()
print(len(task.process_batch(["a", "b"], task.Input(items=["a", "b"]))), "results")
"""
"""Loads the model as a worker does, with a platform's cache in that folder."""


@pytest.mark.parametrize("starting_point", STARTING_POINTS)
def test_a_bake_passes_its_own_lint_and_tests(bake: Bake, starting_point: str, venv: str) -> None:
    """In the environment of the one before, if there was one; what its image lacks is found all the same."""
    make(bake(starting_point=starting_point), "lint", "test", venv)


def test_a_model_is_loaded_in_each_way_that_docs_models_shows(bake: Bake, venv: str, tmp_path: Path) -> None:
    project = bake(starting_point="batch")
    programs = Path(venv.removeprefix("VENV=")) / "bin"
    make(project, str(programs / ".ready"), venv)
    subprocess.run([programs / "python", "-c", CLASSIFIER, tmp_path / "model"], check=True)
    with served(tmp_path / "model") as hub:
        bare = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "MODEL_"))}
        env = {**bare, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path), "PATH": f"{programs}:{os.environ['PATH']}"}

        def fetch(command: str) -> None:
            subprocess.run(command, shell=True, env=env, cwd=tmp_path, check=True)
            hub.asked.clear()

        def asked_when_loaded(**variables: str) -> list[str]:
            line = [str(programs / "python"), "-c", LOAD, str(tmp_path / "hub")]
            on_runpod = {**env, "RUNPOD_POD_ID": "pod", "ALLOW_CPU": "1", **variables}
            done = subprocess.run(line, cwd=project, env=on_runpod, stdout=subprocess.PIPE, text=True, check=True)
            assert "2 results" in done.stdout
            return hub.asked

        [image] = re.findall(r"hf download ORG/NAME --revision COMMIT --local-dir /image/model", MODELS)
        [volume] = re.findall(
            r"^hf download ORG/NAME --revision COMMIT --local-dir /workspace/\S+$", MODELS, re.MULTILINE
        )
        for command, where in ((image, "/image/model"), (volume, "/workspace/models/NAME")):
            folder = tmp_path / "fetched" / where.strip("/")
            fetch(command.replace("ORG/NAME", "tiny/model").replace("COMMIT", COMMIT).replace(where, str(folder)))
            assert asked_when_loaded(MODEL_ID=str(folder)) == []

        fetch(f"hf download tiny/model --cache-dir {tmp_path / 'hub'}")
        assert asked_when_loaded(MODEL_ID="tiny/model", MODEL_REVISION="") == []
        assert asked_when_loaded(MODEL_ID="tiny/model", MODEL_REVISION=COMMIT[:7]) == []

        asked = asked_when_loaded(MODEL_ID="tiny/model", MODEL_REVISION="dev", MODEL_DOWNLOAD="1")
        assert {path for path in asked if "/revision/" in path} == {"/api/models/tiny/model/revision/dev"}


def test_the_lines_for_a_model_in_the_image_fit_the_dockerfile(bake: Bake) -> None:
    """They are not built here: their base takes several GB."""
    project = bake(starting_point="batch")
    stage, last, folder, secret = re.findall(r"```dockerfile\n(.*?)```", MODELS, re.DOTALL)
    dockerfile = (project / "Dockerfile").read_text(encoding="utf-8")
    for before, lines in (("FROM base AS code\n", stage), ("COPY --from=code ", last)):
        assert dockerfile.count(before) == 1
        dockerfile = dockerfile.replace(before, lines + before)
    [plain] = re.findall(r"^RUN HF_HOME=\S+ \S+ download", stage, re.MULTILINE)
    assert secret.count(plain.removeprefix("RUN ")) == 1
    for text in (
        dockerfile,
        dockerfile.replace(plain, secret.partition(" …")[0]),
        dockerfile.replace(stage, folder),
    ):
        done = subprocess.run([Path(sys.executable).with_name("hadolint"), "-"], input=text, text=True)
        assert done.returncode == 0
