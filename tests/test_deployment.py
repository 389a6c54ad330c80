"""An image has one name wherever it is built, run, pushed and deployed; built from other files, it has another."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import STARTING_POINTS, Bake

IMAGE = "docker.io/me/worker"


def said(project: Path, *command: str, status: int = 0, environment: dict[str, str] | None = None) -> str:
    """Return what ``command`` prints in ``project``, with the Python that runs these tests for the Makefile."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "RUNPOD"))}
    kept |= {"PYTHON": sys.executable} | (environment or {})
    done = subprocess.run(command, cwd=project, env=kept, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def deployed(project: Path, **environment: str) -> str:
    """Return the image that a deployment of ``project`` asks for."""
    printed = said(project, sys.executable, "-m", "aggregating_worker", "deploy", "--dry-run", environment=environment)
    image: str = json.loads(printed.partition("\n")[2])["image"]
    return image


def git(project: Path, *arguments: str) -> str:
    return said(project, "git", "-c", "user.name=user", "-c", "user.email=user@localhost", *arguments).strip()


def commit(project: Path) -> str:
    git(project, "init", "--quiet")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "as it is")
    return git(project, "rev-parse", "HEAD")[:12]


@pytest.mark.parametrize("starting_point", STARTING_POINTS)
def test_every_command_and_a_deployment_have_one_name_on_a_machine_without_venv(
    bake: Bake, starting_point: str
) -> None:
    project = bake(starting_point=starting_point, image=IMAGE)
    first = commit(project)
    assert said(project, "make", "image-name") == f"{IMAGE}:{first}\n"
    for target in ("image", "run-image", "push"):
        assert re.findall(rf"{IMAGE}:\S+", said(project, "make", "--dry-run", target)) == [f"{IMAGE}:{first}"]
    assert deployed(project) == f"{IMAGE}:{first}"
    assert not (project / ".venv").exists()


def test_a_second_deployment_of_a_changed_project_is_another_image(bake: Bake) -> None:
    project = bake(image=IMAGE)
    images = [deployed(project)]  # no repository
    images.append(f"{IMAGE}:{commit(project)}")
    assert deployed(project) == images[-1]
    with (project / "task.py").open("a") as task:
        task.write("\n# another\n")
    images.append(deployed(project))
    assert re.fullmatch(rf"{IMAGE}:files-[0-9a-f]{{12}}", images[-1])
    images.append(f"{IMAGE}:{commit(project)}")
    assert deployed(project) == images[-1]
    assert len(set(images)) == 4
    assert not any("latest" in image for image in images)


def test_an_unchanged_project_stays_the_same_image(bake: Bake) -> None:
    """Also once it has been used: no command leaves a file that gets into the image."""
    project = bake(image=IMAGE)
    first = deployed(project)
    assert deployed(bake(image=IMAGE)) == first
    (project / "README.md").write_text("notes\n")
    (project / ".env").write_text("KEY=secret\n")
    said(project, sys.executable, "handler.py")
    assert deployed(project) == first


def test_a_tag_of_ones_own_holds_for_the_deployment_too(bake: Bake) -> None:
    project = bake(image=IMAGE)
    assert deployed(project, TAG="v2") == f"{IMAGE}:v2"
    makefile = project / "Makefile"
    makefile.write_text(re.sub(r"^TAG \?=(.*\\\n)*.*", "TAG := v3", makefile.read_text(), flags=re.MULTILINE))
    assert deployed(project) == f"{IMAGE}:v3" == said(project, "make", "image-name").strip()


def test_where_the_tag_cannot_be_told_nothing_is_built_and_a_sentence_says_what_to_give(bake: Bake) -> None:
    project = bake(image=IMAGE)
    for target in ("image-name", "image", "push"):
        error = said(project, "make", target, "PYTHON=/bin/false", status=2)
        assert "The image has no tag: have PYTHON= name a Python of 3.11 or later, or give TAG=." in error
        assert "docker" not in error
    assert said(project, "make", "image-name", "PYTHON=/bin/false", "TAG=v1") == f"{IMAGE}:v1\n"


def test_a_wheel_of_ones_own_in_vendor_is_not_asked(bake: Bake) -> None:
    project = bake(image=IMAGE)
    (project / "vendor" / "another-1.0-py3-none-any.whl").write_bytes(b"")
    assert re.fullmatch(rf"{IMAGE}:files-[0-9a-f]{{12}}\n", said(project, "make", "image-name"))
