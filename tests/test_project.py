"""What a bake says of its worker: to the Hub, to Docker, to whoever reads its SECURITY.md."""

import ast
import json
import re

import pytest

from aggregating_worker.deploy.tag import Context
from aggregating_worker.settings import Settings
from tests.conftest import ROOT, STARTING_POINTS, Bake

TEMPLATE = ROOT / "{{cookiecutter.project_slug}}"


def test_the_image_runs_as_a_user_with_a_number() -> None:
    """The engine can check a number, ``runAsNonRoot`` for one, without looking into the image."""
    last_stage = (TEMPLATE / "Dockerfile").read_text(encoding="utf-8").rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (.*)$", last_stage, re.MULTILINE) == ["1000:1000"]


OUTSIDE = {
    "secrets": ".env .env.local prod.env keys/.env cert.pem keys/deep/cert.pem server.key id_rsa keys/id_ed25519.pub",
    "credentials": "client_secret.json credentials.json .ssh/config .aws/credentials",
    "tests": "tests/test_task.py tests/tasks/parts.py test_model.py lib/test_model.py conftest.py",
    "notebooks and documents": "explore.ipynb notes/explore.ipynb README.md AGENTS.md SECURITY.md",
    "the project's own": "Dockerfile Makefile pyproject.toml requirements-dev.txt requirements-run.in .github/ci.yml",
    "what tools leave": ".git/config .venv/lib/a.py venv/lib/a.py __pycache__/a.pyc lib/__pycache__/a.pyc",
}
INSIDE = {
    "the worker": "handler.py task.py test_input.json requirements.txt vendor/version.txt vendor/a.whl",
    "code": "model.py lib/model.py environment.py keys.py docs.py",
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


@pytest.mark.parametrize("starting_point", STARTING_POINTS)
def test_the_hub_offers_every_setting_with_its_bounds_and_overrides_none(bake: Bake, starting_point: str) -> None:
    """A default in the Hub's form would be set, and win over a constant in ``task.py``."""
    hub = json.loads((bake(starting_point=starting_point) / ".runpod" / "hub.json").read_text(encoding="utf-8"))
    offered = {entry["key"].lower(): entry["input"] for entry in hub["config"]["env"]}
    known = Settings.model_json_schema()["properties"]
    assert offered.keys() == known.keys()
    for name, setting in known.items():
        of = setting["anyOf"][0] if "anyOf" in setting else setting
        assert offered[name]["type"] == {"integer": "number"}.get(of["type"], of["type"])
        assert "default" not in offered[name]
        if (default := setting.get("default")) is not None:
            assert f"Unset: {json.dumps(default)}" in offered[name]["description"]
        if of["type"] in ("integer", "number"):
            assert offered[name]["min"] == of.get("minimum", of.get("exclusiveMinimum", -1) + 1)


def test_a_copy_of_the_sample_environment_changes_nothing_and_it_has_every_setting() -> None:
    lines = (TEMPLATE / ".env.example").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == []
    sample = dict(re.findall(r"^# ([A-Z_]+)=(.*)$", "\n".join(lines), re.MULTILINE))
    assert sample.keys() == {name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        assert field.default is None or sample[name.upper()] == str(field.default).lower()
