"""What a bake says of its worker: to the Hub, to Docker, to whoever reads its SECURITY.md."""

import ast
import json
import re
import subprocess
import sys

import pytest
from pydantic import ValidationError

import settings
from aggregating_worker.deploy.hub import HUB, TESTS
from aggregating_worker.deploy.tag import Context
from aggregating_worker.settings import Settings
from tests.conftest import ROOT, STARTING_POINTS, Bake

TEMPLATE = ROOT / "{{cookiecutter.project_slug}}"
OF_A_TASK = {"MODEL_ID", "MODEL_REVISION", "MODEL_DOWNLOAD", "ALLOW_CPU", "UPSTREAM_URL", "UPSTREAM_TIMEOUT"}
"""Variables that are no setting of the worker: the samples' tasks have them read."""


def test_the_image_runs_as_a_user_with_a_number() -> None:
    """The engine can check a number, ``runAsNonRoot`` for one, without looking into the image."""
    last_stage = (TEMPLATE / "Dockerfile").read_text(encoding="utf-8").rpartition("\nFROM ")[2]
    assert re.findall(r"^(?:ARG )?USER\b(.*)$", last_stage, re.MULTILINE) == ["=1000", " ${USER}:${USER}"]


OUTSIDE = {
    "secrets": ".env .env.local prod.env keys/.env cert.pem keys/deep/cert.pem server.key id_rsa keys/id_ed25519.pub",
    "credentials": "client_secret.json credentials.json .ssh/config .aws/credentials",
    "tests": "tests/test_task.py tests/tasks/parts.py test_model.py lib/test_model.py conftest.py",
    "notebooks and documents": "explore.ipynb notes/explore.ipynb README.md AGENTS.md SECURITY.md",
    "the project's own": "Dockerfile Makefile pyproject.toml requirements-dev.txt requirements-run.in .github/ci.yml",
    "what helpers leave": "job_files/a jobs/local_test/downloaded_files/a local_upload/a simulated_uploaded/a",
    "what tools leave": ".git/config .venv/lib/a.py venv/lib/a.py __pycache__/a.pyc lib/__pycache__/a.pyc",
}
INSIDE = {
    "the worker": "handler.py task.py test_input.json requirements.txt vendor/version.txt vendor/a.whl",
    "code": "model.py lib/model.py environment.py keys.py docs.py jobs/queue.py",
    "data": "labels.txt data/labels.json data/README.md prompts/system.md weights.safetensors tests.json endpoints.csv",
}


@pytest.mark.parametrize("paths", OUTSIDE.values(), ids=OUTSIDE)
def test_secrets_tests_and_notebooks_stay_out_of_the_image(paths: str) -> None:
    assert [path for path in paths.split() if Context(TEMPLATE).has(path)] == []


@pytest.mark.parametrize("paths", INSIDE.values(), ids=INSIDE)
def test_what_is_beside_the_task_gets_into_the_image(paths: str) -> None:
    assert [path for path in paths.split() if not Context(TEMPLATE).has(path)] == []


def test_the_image_copies_what_is_sent_in_one_place_only() -> None:
    text = (TEMPLATE / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE) == [
        "requirements-run.txt /",
        "requirements.txt /",
        "vendor /vendor",
        ". .",
    ]
    assert re.findall(r"^COPY --from=(.*)$", text, re.MULTILINE) == ["dependencies /image /", "code /image /"]


def test_every_test_that_is_named_exists() -> None:
    text = (TEMPLATE / "SECURITY.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    named = [re.findall(r"`(\w+\.py)::([\w:]+)`", row) for row in rows]
    assert rows
    assert all(named), "each claim names the test that holds it"
    for file, place in {each for names in named for each in names}:
        path = next(path for folder in ("library/tests", "tests") if (path := ROOT / folder / file).exists())
        scope: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
        for name in place.split("::"):
            [found] = [each for each in scope if getattr(each, "name", None) == name]
            scope = getattr(found, "body", [])


def test_the_settings_are_listed_as_the_library_has_them() -> None:
    assert [file.name for file, text in settings.written().items() if text != file.read_text(encoding="utf-8")] == []


def test_the_readme_names_no_setting_that_is_none() -> None:
    text = (TEMPLATE / "README.md").read_text(encoding="utf-8")
    [section] = re.findall(r"^## Settings\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    named = re.findall(r"`([A-Z_]+)`", section)
    assert named
    assert {name.lower() for name in named} <= Settings.model_fields.keys()


OF_THE_SAMPLE = {
    "sync": set(),
    "async": {"UPSTREAM_URL", "UPSTREAM_TIMEOUT"},
    "batch": {"MODEL_ID", "MODEL_REVISION", "MODEL_DOWNLOAD"},
    "images": {"MODEL_ID", "MODEL_REVISION", "MODEL_DOWNLOAD"},
}


@pytest.mark.parametrize("starting_point", STARTING_POINTS)
def test_the_hubs_form_asks_for_every_setting_and_overrides_no_constant(bake: Bake, starting_point: str) -> None:
    """A default in the form would be set, and win over a constant in ``task.py``."""
    hub = json.loads((bake(starting_point=starting_point) / ".runpod" / "hub.json").read_text(encoding="utf-8"))
    asked = {entry["key"]: entry["input"] for entry in hub["config"]["env"]}
    known = {name.upper(): schema for name, schema in Settings.model_json_schema()["properties"].items()}
    assert asked.keys() == known.keys() | OF_THE_SAMPLE[starting_point]
    assert [name for name, entry in asked.items() if "default" in entry] in ([], ["MODEL_DOWNLOAD"])
    for name, schema in known.items():
        of = schema["anyOf"][0] if "anyOf" in schema else schema
        assert asked[name]["type"] == {"integer": "number"}.get(of["type"], of["type"])
        if (default := schema.get("default")) is not None:
            assert f"Unset: {json.dumps(default)}" in asked[name]["description"]
        if of["type"] in ("integer", "number"):
            least = asked[name]["min"]
            Settings.model_validate({name.lower(): least})
            with pytest.raises(ValidationError):
                Settings.model_validate({name.lower(): least - 1})


@pytest.mark.parametrize("starting_point", STARTING_POINTS)
def test_what_the_hub_reads_is_as_its_guide_has_it(bake: Bake, starting_point: str) -> None:
    project = bake(starting_point=starting_point)
    before = json.loads((project / TESTS).read_text(encoding="utf-8"))
    subprocess.run([sys.executable, "-m", "aggregating_worker", "hub"], cwd=project, check=True)
    assert json.loads((project / TESTS).read_text(encoding="utf-8")) == before
    hub = json.loads((project / HUB).read_text(encoding="utf-8"))
    on = {"cpuFlavor": "cpu5c"} if "cpuFlavor" in before["config"] else {"gpuCount": 1}
    assert {name: hub["config"].get(name) for name in on} == {name: before["config"].get(name) for name in on} == on
    assert hub["config"].get("allowedCudaVersions") == before["config"].get("allowedCudaVersions")


@pytest.mark.parametrize("starting_point", ["batch", "images"])
def test_the_hub_gives_a_gpu_worker_hosts_with_a_driver_for_its_image(bake: Bake, starting_point: str) -> None:
    """A driver runs the CUDA of its own version and older ones."""
    project = bake(starting_point=starting_point)
    dockerfile = (project / "Dockerfile").read_text(encoding="utf-8")
    [image] = re.findall(r"^FROM \S+-cu(?:da)?(\d\d)\.?(\d)", dockerfile, re.MULTILINE)
    hub = json.loads((project / HUB).read_text(encoding="utf-8"))
    drivers = [tuple(map(int, version.split("."))) for version in hub["config"]["allowedCudaVersions"]]
    assert min(drivers) == tuple(map(int, image))


def test_the_icon_is_a_square_picture_in_this_repository(bake: Bake) -> None:
    hub = json.loads((bake() / HUB).read_text(encoding="utf-8"))
    picture = (ROOT / hub["iconUrl"].partition("/main/")[2]).read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert picture[16:20] == picture[20:24] > b"\0\0\0\x7f"  # width and height


def test_a_copy_of_the_sample_environment_changes_nothing_and_it_has_every_setting() -> None:
    lines = (TEMPLATE / ".env.example").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == []
    sample = dict(re.findall(r"^# ([A-Z_]+)=(.*)$", "\n".join(lines), re.MULTILINE))
    assert sample.keys() == {name.upper() for name in Settings.model_fields} | OF_A_TASK
    for name, field in Settings.model_fields.items():
        assert sample[name.upper()] == ("" if field.default is None else str(field.default).lower())
