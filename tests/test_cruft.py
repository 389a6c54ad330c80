"""``cruft update``: a project gets the template's newer library and keeps what is its user's."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import STARTING_POINTS, make

WORKER = "{{cookiecutter.project_slug}}"
YOURS = """
README.md task.py tests/conftest.py tests/test_task.py test_input.json
requirements.txt requirements-run.txt requirements-dev.txt
""".split()


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be somebody, with nothing of this machine's user in the way: settings of git, replays of cookiecutter."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "user")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "user@localhost")


@pytest.fixture
def upstream(template: Path, tmp_path: Path) -> Path:
    """Commit the template to a repository of its own."""
    folder = tmp_path / "upstream"
    shutil.copytree(template, folder)
    git(folder, "init", "--quiet")
    commit(folder)
    return folder


def git(folder: Path, *arguments: str) -> str:
    return subprocess.check_output(["git", *arguments], cwd=folder, text=True).strip()


def commit(folder: Path) -> str:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "change")
    return git(folder, "rev-parse", "HEAD")


def cruft(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "cruft", *arguments], check=True)


def create(upstream: Path, tmp_path: Path, **answers: str) -> Path:
    context = ("--extra-context", json.dumps(answers))
    cruft("create", str(upstream), "--no-input", "--output-dir", str(tmp_path), *context)
    project = tmp_path / "mine"
    git(project, "init", "--quiet")
    return project


def write(folder: Path, names: list[str], text: str) -> None:
    for name in names:
        (folder / name).write_text(text)


def change_upstream(upstream: Path) -> str:
    """Commit a newer template: another version of the library, a changed Makefile, another sample and newer locks."""
    library = upstream / "library"
    text = (library / "pyproject.toml").read_text().replace('version = "0.1.0"', 'version = "0.2.0"')
    (library / "pyproject.toml").write_text(text)
    worker = upstream / WORKER
    shutil.rmtree(worker / "vendor")
    uv = str(Path(sys.executable).with_name("uv"))
    subprocess.run([uv, "build", "--quiet", "--wheel", "--out-dir", str(worker / "vendor"), str(library)], check=True)
    (worker / "vendor" / ".gitignore").unlink()
    (worker / "vendor" / "version.txt").write_text("aggregating-worker==0.2.0\n")
    makefile = (worker / "Makefile").read_text()
    (worker / "Makefile").write_text(makefile.replace(".DEFAULT_GOAL := help", "NEWER := 1\n.DEFAULT_GOAL := help"))
    for point in STARTING_POINTS:
        write(worker / "starting_points" / point, YOURS, "newer\n")
    return commit(upstream)


@pytest.mark.parametrize(
    ("starting_point", "committed"),
    [("sync", True), ("async", True), ("batch", False), ("images", True)],
    ids=["sync", "async", "batch, first committed once edited", "images"],
)
def test_an_update_brings_the_library_and_keeps_what_is_yours(
    upstream: Path, tmp_path: Path, starting_point: str, committed: bool
) -> None:
    answers = {"project_name": "Mine", "image": "ghcr.io/me/mine", "starting_point": starting_point}
    project = create(upstream, tmp_path, **answers)
    if committed:
        commit(project)
    write(project, YOURS, "mine\n")
    write(project, ["model.py"], "mine too\n")
    pyproject = (
        (project / "pyproject.toml").read_text().replace("dependencies = [\n", 'dependencies = [\n  "pillow>=11",\n', 1)
    )
    (project / "pyproject.toml").write_text(pyproject)
    commit(project)
    newest = change_upstream(upstream)

    cruft("update", "--skip-apply-ask", "--project-dir", str(project))

    assert sorted(path.name for path in (project / "vendor").iterdir()) == [
        "aggregating_worker-0.2.0-py3-none-any.whl",
        "version.txt",
    ]
    makefile = (project / "Makefile").read_text()
    assert "NEWER := 1\n" in makefile
    assert makefile.startswith("IMAGE := ghcr.io/me/mine\n")
    assert {(project / name).read_text() for name in YOURS} == {"mine\n"}
    assert (project / "model.py").read_text() == "mine too\n"
    assert (project / "pyproject.toml").read_text() == pyproject
    assert json.loads((project / ".cruft.json").read_text())["commit"] == newest
    assert not [*project.rglob("*.rej"), *project.rglob("*.orig")]
    assert "U" not in {line[0] for line in git(project, "status", "--porcelain").splitlines()}
    assert not (project / "starting_points").exists()


def test_what_an_update_leaves_alone_is_there(upstream: Path, tmp_path: Path) -> None:
    """A file that is renamed must be renamed in ``skip`` too, or an update would write over it."""
    project = create(upstream, tmp_path, project_name="Mine")
    skipped = tomllib.loads((project / "pyproject.toml").read_text())["tool"]["cruft"]["skip"]
    assert set(YOURS) < set(skipped)
    assert [name for name in skipped if not (project / name).is_file()] == []


def test_an_updated_project_with_a_package_of_its_own_locks_anew_and_runs(upstream: Path, tmp_path: Path) -> None:
    project = create(upstream, tmp_path, project_name="Mine")
    pyproject = (project / "pyproject.toml").read_text()
    pyproject = pyproject.replace("dependencies = [\n", 'dependencies = [\n  "tomli-w>=1",\n', 1)
    (project / "pyproject.toml").write_text(pyproject)
    task = (project / "task.py").read_text().replace("import re\n", "import re\nimport tomli_w\n", 1)
    (project / "task.py").write_text(task)
    make(project, "lock", "run")
    commit(project)
    change_upstream(upstream)
    cruft("update", "--skip-apply-ask", "--project-dir", str(project))

    make(project, "run")

    lock = (project / "requirements.txt").read_text()
    assert "\naggregating-worker==0.2.0 " in lock
    assert "\ntomli-w==" in lock
    python = str(project / ".venv" / "bin" / "python")
    version = "from importlib.metadata import version; print(version('aggregating-worker'))"
    assert subprocess.check_output([python, "-c", version], text=True).strip() == "0.2.0"
