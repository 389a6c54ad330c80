"""Every answer bakes into valid files, or is refused in one line and leaves nothing behind."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from cookiecutter.exceptions import FailedHookException
from cookiecutter.main import cookiecutter

from tests.conftest import QUESTIONS, ROOT, STARTING_POINTS, Bake

TREE = """
.dockerignore .env.example .gitattributes .gitignore AGENTS.md Dockerfile Makefile README.md SECURITY.md
handler.py pyproject.toml requirements-dev.in requirements-dev.txt requirements-run.in requirements-run.txt
requirements.txt task.py test_input.json
.github/dependabot.yml .github/workflows/ci.yml .github/workflows/release.yml
.runpod/hub.json .runpod/tests.json
tests/conftest.py tests/test_promises.py tests/test_task.py
vendor/version.txt
""".split()
TREE += [f"vendor/{wheel.name}" for wheel in (ROOT / "{{cookiecutter.project_slug}}" / "vendor").glob("*.whl")]

OF_THE_STARTING_POINT = """
.runpod/hub.json .runpod/tests.json Dockerfile Makefile pyproject.toml requirements.txt
task.py test_input.json tests/conftest.py tests/test_task.py
""".split()

HOSTILE_TEXTS = [
    "It's \"quoted\" 'twice' \\ and \\\\ back",
    '"; import os; os.abort() #',
    '"""',
    "$(touch pwned) `touch pwned` ${HOME} %s",
    "emoji 😀 👩‍👩‍👧 ünï 日本語 \u202e",
    "<b>&amp;</b> | # * _ ~",
    "a" * 80,
]


def files(project: Path) -> list[str]:
    return sorted(str(path.relative_to(project)) for path in project.rglob("*") if path.is_file())


def check(project: Path) -> None:
    """Every file parses, and nothing of the template is left in it."""
    for name in [name for name in files(project) if not name.endswith(".whl")]:
        text = (project / name).read_text(encoding="utf-8")
        assert not re.search(r"\{\{ ?cookiecutter|cookiecutter\.[a-z_]+ ?\}\}|\{%", text), name
        match Path(name).suffix:
            case ".py":
                ast.parse(text, name)
            case ".json":
                json.loads(text)
            case ".toml":
                tomllib.loads(text)
            case ".yml" | ".yaml":
                yaml.safe_load(text)


def test_there_are_five_questions_each_with_a_prompt() -> None:
    asked = [name for name in QUESTIONS if not name.startswith("_")]
    assert len(asked) == 5
    assert list(QUESTIONS["__prompts__"]) == asked
    assert set(QUESTIONS["__prompts__"]["starting_point"]) == {"__prompt__", *STARTING_POINTS}


@pytest.mark.parametrize("starting_point", STARTING_POINTS)
def test_every_starting_point_bakes_into_exactly_this_tree(bake: Bake, starting_point: str) -> None:
    project = bake(starting_point=starting_point)
    assert files(project) == sorted(TREE)
    check(project)


def test_starting_points_differ_in_the_task_and_what_it_needs_only(bake: Bake) -> None:
    first, *others = (bake(starting_point=starting_point) for starting_point in STARTING_POINTS)
    for other in others:
        differing = [name for name in TREE if (first / name).read_bytes() != (other / name).read_bytes()]
        assert set(differing) <= set(OF_THE_STARTING_POINT)


def test_every_link_between_pages_leads_to_a_file(template: Path, bake: Bake) -> None:
    for page in [*bake().rglob("*.md"), *template.glob("*.md"), *template.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            assert "://" in link or (page.parent / link).is_file(), (page, link)


@pytest.mark.parametrize("starting_point", STARTING_POINTS)
def test_a_bake_is_small_enough_to_be_read(bake: Bake, starting_point: str) -> None:
    project = bake(starting_point=starting_point)
    own = [name for name in files(project) if not re.fullmatch(r"requirements.*\.txt|vendor/.*\.whl", name)]
    assert len(files(project)) <= 35
    assert sum(len((project / name).read_text(encoding="utf-8").splitlines()) for name in own) <= 1_500
    assert len((project / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
    assert len((project / "handler.py").read_text(encoding="utf-8").splitlines()) <= 40


def test_every_page_of_the_documentation_is_linked_from_the_readme_and_leads_back(bake: Bake) -> None:
    readme, worker = (folder / "README.md" for folder in (ROOT, bake()))
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name})" in readme.read_text(encoding="utf-8") + worker.read_text(encoding="utf-8"), page
        assert "](../README.md)" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("starting_point", STARTING_POINTS)
def test_the_hub_tests_the_worker_with_its_own_test_input(bake: Bake, starting_point: str) -> None:
    project = bake(starting_point=starting_point)
    [test] = json.loads((project / ".runpod" / "tests.json").read_text())["tests"]
    assert test["input"] == json.loads((project / "test_input.json").read_text())["input"]


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_a_hostile_text_is_only_text(bake: Bake, text: str) -> None:
    project = bake(project_name=text, project_slug="safe", description=text)
    assert files(project) == sorted(TREE)
    check(project)
    hub = json.loads((project / ".runpod" / "hub.json").read_text(encoding="utf-8"))
    assert (hub["title"], hub["description"]) == (text, text)
    assert text in (project / "README.md").read_text(encoding="utf-8")


def test_a_typed_answer_that_looks_like_a_template_is_only_text(template: Path, tmp_path: Path) -> None:
    """Typed, since cookiecutter itself renders the answers that it is given as arguments."""
    text = "{{ braces }} {% raw %} {# note #} {'a': 1}"
    subprocess.run(
        [sys.executable, "-m", "cookiecutter", str(template), "--output-dir", str(tmp_path)],
        input=f"{text}\nsafe\n{text}\n\n\n",
        env={**os.environ, "HOME": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    hub = json.loads((tmp_path / "safe" / ".runpod" / "hub.json").read_text(encoding="utf-8"))
    assert (hub["title"], hub["description"]) == (text, text)
    assert (tmp_path / "safe" / "README.md").read_text(encoding="utf-8").startswith(f"# {text}\n")


@pytest.mark.parametrize("image", ["worker", "docker.io/me/worker", "localhost:5000/a/b_c", "ghcr.io/an-org/a.b--c"])
def test_an_image_name_that_docker_takes_is_taken(bake: Bake, image: str) -> None:
    project = bake(image=image)
    assert f"IMAGE := {image}\n" in (project / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("answers", "line"),
    [
        ({"project_slug": "../../outside"}, "project_slug: use a-z"),
        ({"project_slug": "/tmp/outside"}, "project_slug: use a-z"),
        ({"project_slug": "Upper"}, "project_slug: use a-z"),
        ({"project_slug": "a" * 64}, "project_slug: use a-z"),
        ({"project_slug": "ends-"}, "project_slug: use a-z"),
        ({"project_slug": "two words"}, "project_slug: use a-z"),
        ({"project_slug": "line\n"}, "project_slug: use a-z"),
        ({"project_name": "a" * 81, "project_slug": "a"}, "project_name: give"),
        ({"project_name": "two\nlines", "project_slug": "a"}, "project_name: give"),
        ({"project_name": " ", "project_slug": "a"}, "project_name: give"),
        ({"project_name": "\x1b[31m", "project_slug": "a"}, "project_name: give"),
        ({"description": "a\u2028b"}, "description: give"),
        ({"description": ""}, "description: give"),
        ({"image": "Docker.io/Me/Worker"}, "image: give registry/name"),
        ({"image": "docker.io/me/worker:latest"}, "image: give registry/name"),
        ({"image": "docker.io/me/worker@sha256:0"}, "image: give registry/name"),
        ({"image": "../x/y"}, "image: give registry/name"),
        ({"image": "--help/x"}, "image: give registry/name"),
        ({"image": "$(reboot)"}, "image: give registry/name"),
        ({"image": "a\nb"}, "image: give registry/name"),
        ({"image": "worker\n"}, "image: give registry/name"),
        ({"image": ""}, "image: give registry/name"),
    ],
)
def test_a_bad_answer_is_refused_in_one_line(
    bake: Bake, tmp_path: Path, capfd: pytest.CaptureFixture[str], answers: dict[str, str], line: str
) -> None:
    output = tmp_path / "deep" / "output"
    output.mkdir(parents=True)
    with pytest.raises(FailedHookException):
        bake(output, **answers)
    said = capfd.readouterr().err.strip()
    assert said.startswith(line)
    assert "\n" not in said
    assert [path for path in tmp_path.rglob("*") if ".replay" not in path.parts] == [tmp_path / "deep", output]
    assert not Path("/tmp/outside").exists()


@pytest.mark.parametrize("output", ["new", "new/deeper"])
@pytest.mark.parametrize("slug", ["..", ".", "../..", "a/..", "../../here", "{here}", "", "..\\.."])
def test_no_slug_costs_a_file_that_was_there(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slug: str, output: str
) -> None:
    """Cookiecutter removes the folder that it has made when a hook refuses the answers; ``new/..`` is where one is."""
    here = tmp_path / "here"
    here.mkdir()
    (here / "canary").write_text("sings")
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path))
    slug = slug.replace("{here}", str(here))

    config = {"replay_dir": str(tmp_path / "replay"), "cookiecutters_dir": str(tmp_path / "cookiecutters")}
    answers = {"project_slug": slug}
    with pytest.raises(FailedHookException):
        cookiecutter(str(template), no_input=True, output_dir=output, default_config=config, extra_context=answers)
    assert (here / "canary").read_text() == "sings"

    options = ["--no-input", "--output-dir", output, f"project_slug={slug}"]
    line = [sys.executable, "-m", "cookiecutter", str(template), *options]
    refused = subprocess.run(line, stderr=subprocess.PIPE, text=True)
    assert refused.returncode
    assert "project_slug: use a-z" in refused.stderr
    assert (here / "canary").read_text() == "sings"


def test_baking_says_what_to_do_next(bake: Bake, capfd: pytest.CaptureFixture[str]) -> None:
    bake(project_name="Tidy Words")
    said = capfd.readouterr().out
    assert [line.split("#")[0].strip() for line in said.splitlines() if line.startswith("    ")] == [
        "cd tidy-words",
        "make demo",
        "make test",
    ]


def test_no_file_names_a_package_index(template: Path) -> None:
    for path in template.rglob("*"):
        if path.is_file() and path.name.startswith("requirements") and path.suffix == ".txt":
            assert "://" not in path.read_text(encoding="utf-8")
