"""The workflows of a baked project and of the template: valid, locked down, and true to the Makefile."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import STARTING_POINTS, Bake, make

BIN = Path(sys.executable).parent


@pytest.fixture(params=["template", "worker"])
def project(request: pytest.FixtureRequest, template: Path, bake: Bake) -> Path:
    return template if request.param == "template" else bake()


def workflows(project: Path) -> list[Path]:
    return sorted((project / ".github" / "workflows").iterdir())


def jobs(workflow: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    return found


def steps(project: Path) -> Iterator[dict[str, Any]]:
    for workflow in workflows(project):
        for job in jobs(workflow).values():
            yield from job["steps"]


def check(tool: str, *arguments: str | Path) -> None:
    finished = subprocess.run([BIN / tool, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(finished.stdout)
    assert finished.returncode == 0


def test_they_follow_their_schemas(project: Path) -> None:
    check("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows(project))
    check("check-jsonschema", "--builtin-schema", "vendor.dependabot", project / ".github" / "dependabot.yml")


def test_zizmor_finds_nothing(project: Path) -> None:
    check("zizmor", "--offline", "--strict-collection", "--no-ignores", "--persona=pedantic", project / ".github")


def test_every_action_is_pinned_by_commit_with_its_version_beside_it(project: Path) -> None:
    used = [line for path in workflows(project) for line in path.read_text().splitlines() if "uses:" in line]
    assert used
    for line in used:
        assert re.fullmatch(r"\s*- uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)


def test_those_of_a_worker_hold_nothing_of_the_template(template: Path, bake: Bake) -> None:
    for path in workflows(bake()):
        text = path.read_text(encoding="utf-8")
        assert "cookiecutter" not in text
        assert text == (template / "{{cookiecutter.project_slug}}/.github/workflows" / path.name).read_text("utf-8")


@pytest.mark.parametrize("starting_point", STARTING_POINTS)
def test_every_make_target_that_they_call_exists(template: Path, bake: Bake, starting_point: str) -> None:
    worker = bake(starting_point=starting_point)
    for project in template, worker:
        for step in steps(project):
            for targets in re.findall(r"\bmake ([^)|;&\n]+)", step.get("run", "")):
                make(worker if "working-directory" in step else project, "--dry-run", *targets.split())


def test_lint_reads_the_dockerfile(bake: Bake, capfd: pytest.CaptureFixture[str]) -> None:
    make(bake(), "--dry-run", "lint")
    assert "hadolint Dockerfile" in capfd.readouterr().out


def test_the_gate_waits_for_every_job_and_every_starting_point(template: Path) -> None:
    workflow = template / ".github" / "workflows" / "ci.yml"
    *others, gate = jobs(workflow)
    assert (gate, jobs(workflow)[gate]["needs"]) == ("gate", others)
    assert jobs(workflow)["worker"]["strategy"]["matrix"]["starting_point"] == STARTING_POINTS


@pytest.mark.parametrize("proposed", ["", "7"], ids=["none open", "one open"])
def test_what_is_refreshed_becomes_one_pull_request_of_nothing_else(
    template: Path, tmp_path: Path, proposed: str
) -> None:
    """The patch comes from where new packages ran: it may change the lock files and the Dockerfile's uv."""
    git = ["git", "-c", "user.name=user", "-c", "user.email=user@localhost", "-C"]
    origin, clone, said = tmp_path / "origin", tmp_path / "clone", tmp_path / "said"
    subprocess.run(["git", "init", "--quiet", "--bare", origin], check=True)
    subprocess.run(["git", "clone", "--quiet", origin, clone], check=True)
    changed = ["requirements-dev.txt", "a/requirements.txt", "a/Dockerfile", "Makefile", "hooks/post.py"]
    for name in changed:
        (clone / name).parent.mkdir(exist_ok=True)
        (clone / name).write_text("older\n")
    subprocess.run([*git, clone, "add", "--all"], check=True)
    subprocess.run([*git, clone, "commit", "--quiet", "--message", "older"], check=True)
    for name in changed:
        (clone / name).write_text("newer\n")
    patch = subprocess.check_output([*git, clone, "diff", "--binary"])
    subprocess.run([*git, clone, "reset", "--quiet", "--hard"], check=True)
    (tmp_path / "patch").write_bytes(patch)
    gh = tmp_path / "gh"
    gh.write_text(
        f'#!/bin/sh\necho "$*" >> {said}\ncase "$1 $2" in\n'
        f"'run download') cp {tmp_path}/patch weekly.patch ;;\n'pr list') echo {proposed} ;;\nesac\n"
    )
    gh.chmod(0o755)
    [script] = [step["run"] for step in steps(template) if step.get("name", "").startswith("Propose")]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "GITHUB_RUN_ID": "1", "GITHUB_REF_NAME": "main"}
    subprocess.run(["bash", "-e", "-c", script], cwd=clone, env=environment, check=True)

    pushed = subprocess.check_output([*git, origin, "show", "--name-only", "--format=", "weekly"], text=True)
    assert sorted(pushed.split()) == ["a/Dockerfile", "a/requirements.txt", "requirements-dev.txt"]
    assert ("pr create --base main --head weekly" in said.read_text()) is (proposed == "")


def release(project: Path, step: str, tmp_path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a step of the release as GitHub does, with a docker that only says what it was asked to do."""
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\necho docker "$@"\n')
    docker.chmod(0o755)
    [script] = [each["run"] for each in steps(project) if each.get("name", "").startswith(step)]
    return subprocess.run(
        ["bash", "-e", "-c", script],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "GITHUB_ENV": str(tmp_path / "env"), **env},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("image", "registry"),
    [
        ("worker", "docker.io"),
        ("your-name/worker", "docker.io"),
        ("docker.io/your-name/worker", "docker.io"),
        ("ghcr.io/an-org/a.b", "ghcr.io"),
        ("registry:5000/worker", "registry:5000"),
        ("localhost/worker", "localhost"),
        ("localhosts/worker", "docker.io"),
        ("a.b", "docker.io"),
    ],
)
def test_a_release_logs_in_where_docker_will_push(bake: Bake, tmp_path: Path, image: str, registry: str) -> None:
    done = release(bake(), "Log in", tmp_path, IMAGE=image, USERNAME="name", PASSWORD="word")
    assert done.stdout == f"docker login {registry} --username name --password-stdin\n"


@pytest.mark.parametrize("missing", ["USERNAME", "PASSWORD"])
def test_a_release_without_credentials_says_which_secrets_to_set(bake: Bake, tmp_path: Path, missing: str) -> None:
    env = {"IMAGE": "worker", "USERNAME": "name", "PASSWORD": "word", missing: ""}
    done = release(bake(), "Log in", tmp_path, **env)
    assert done.returncode == 1
    assert done.stdout.startswith("::error::Set the secrets REGISTRY_USERNAME and REGISTRY_PASSWORD")


@pytest.mark.parametrize(("prerelease", "tags"), [("false", ["v1", "latest"]), ("true", ["v1"])])
def test_only_a_full_release_is_the_latest(bake: Bake, tmp_path: Path, prerelease: str, tags: list[str]) -> None:
    done = release(bake(), "Push", tmp_path, IMAGE="me/worker", TAG="v1", PRERELEASE=prerelease)
    assert re.findall(r"--tag me/worker:(\S+)", done.stdout) == tags


@pytest.mark.parametrize("tag", ["v1+build", "release/1", "$(reboot)", "-v", "a" * 129, ""])
def test_a_tag_that_no_image_can_have_is_refused(bake: Bake, tmp_path: Path, tag: str) -> None:
    done = release(bake(), "Name", tmp_path, TAG=tag)
    assert done.returncode == 1
    assert done.stdout.startswith("::error::An image cannot have the tag")
