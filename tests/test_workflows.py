"""The workflows of a baked project and of the template: valid, locked down, and true to the Makefile."""

import hashlib
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
        assert re.fullmatch(r"\s*(- )?uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)


def test_only_the_job_that_pushes_a_release_may_write(bake: Bake) -> None:
    writing = []
    for workflow in workflows(bake()):
        assert yaml.safe_load(workflow.read_text(encoding="utf-8"))["permissions"] == {}
        for name, job in jobs(workflow).items():
            writing += [(workflow.name, name, what) for what, right in job["permissions"].items() if right != "read"]
    assert writing == [("release.yml", "image", what) for what in ("packages", "attestations", "id-token")]


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


def test_the_patch_is_taken_before_what_is_new_runs_and_elsewhere(template: Path) -> None:
    weekly = jobs(template / ".github" / "workflows" / "weekly.yml")
    ran = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in weekly.items()}
    assert [line.split()[:2] for line in ran["refresh"]] == [["make", "upgrade"]]
    assert ran["test"][1:] == ["make test", "make test-sdk"]
    assert "make" not in " ".join(ran["propose"])
    assert weekly["test"]["needs"] == "refresh"
    assert weekly["propose"]["needs"] == ["refresh", "test"]
    assert [name for name, job in weekly.items() if "write" in job["permissions"].values()] == ["propose"]


class Week:
    """The step that proposes what was refreshed, in a clone of its own, with a ``gh`` that says what it was told."""

    def __init__(self, template: Path, folder: Path, proposed: str) -> None:
        self._git = ["git", "-c", "user.name=user", "-c", "user.email=user@localhost", "-C"]
        self._folder, self._origin, self._clone = folder, folder / "origin", folder / "clone"
        subprocess.run(["git", "init", "--quiet", "--bare", self._origin], check=True)
        subprocess.run(["git", "clone", "--quiet", self._origin, self._clone], check=True)
        gh = folder / "gh"
        gh.write_text(
            f'#!/bin/sh\necho "$*" >> {folder}/said\ncase "$1 $2" in\n'
            f"'run download') cp {folder}/patch weekly.patch ;;\n'pr list') echo {proposed} ;;\nesac\n"
        )
        gh.chmod(0o755)
        [self._script] = [step["run"] for step in steps(template) if step.get("name", "").startswith("Propose")]

    def patch(self, *changed: str) -> None:
        """Make the patch that changes these files."""
        for name in changed:
            (self._clone / name).parent.mkdir(exist_ok=True)
            (self._clone / name).write_text("older\n")
        subprocess.run([*self._git, self._clone, "add", "--all"], check=True)
        subprocess.run([*self._git, self._clone, "commit", "--quiet", "--message", "older"], check=True)
        for name in changed:
            (self._clone / name).write_text("newer\n")
        patch = subprocess.check_output([*self._git, self._clone, "diff", "--binary"])
        subprocess.run([*self._git, self._clone, "reset", "--quiet", "--hard"], check=True)
        (self._folder / "patch").write_bytes(patch)

    def propose(self, sha256: str | None = None) -> "subprocess.CompletedProcess[str]":
        sha256 = sha256 or hashlib.sha256((self._folder / "patch").read_bytes()).hexdigest()
        environment = {
            "PATH": f"{self._folder}:/usr/bin:/bin",
            "GITHUB_RUN_ID": "1",
            "GITHUB_REF_NAME": "main",
            "SHA256": f"{sha256}  -",
        }
        return subprocess.run(
            ["bash", "-e", "-c", self._script], cwd=self._clone, env=environment, stdout=subprocess.PIPE, text=True
        )

    @property
    def said(self) -> str:
        return (self._folder / "said").read_text()

    @property
    def pushed(self) -> list[str]:
        """The files of the branch that was pushed, if one was."""
        if not subprocess.check_output([*self._git, self._origin, "branch", "--list", "weekly"]):
            return []
        shown = subprocess.check_output(
            [*self._git, self._origin, "show", "--name-only", "--format=", "weekly"], text=True
        )
        return sorted(shown.split())


@pytest.mark.parametrize("proposed", ["", "7"], ids=["none open", "one open"])
def test_what_is_refreshed_becomes_one_pull_request_of_nothing_else(
    template: Path, tmp_path: Path, proposed: str
) -> None:
    """It may change the lock files."""
    week = Week(template, tmp_path, proposed)
    week.patch("requirements-dev.txt", "a/requirements.txt", "a/Dockerfile", "Makefile", "hooks/post.py")
    assert week.propose().returncode == 0
    assert week.pushed == ["a/requirements.txt", "requirements-dev.txt"]
    assert ("pr create --base main --head weekly" in week.said) is (proposed == "")


def test_a_patch_that_has_changed_since_it_was_made_is_not_proposed(template: Path, tmp_path: Path) -> None:
    week = Week(template, tmp_path, "")
    week.patch("requirements-dev.txt")
    refused = week.propose(sha256="0" * 64)
    assert refused.returncode == 1
    assert refused.stdout.startswith("::error::The patch is not the one")
    assert week.pushed == []


def test_a_policy_says_where_to_report_a_vulnerability_and_when_to_disclose_it(project: Path) -> None:
    """As OpenSSF Scorecard looks for it: a link, and words of at least two of three kinds (its checks.md, 5.5)."""
    text = (project / "SECURITY.md").read_text(encoding="utf-8").partition("## Reporting")[2]
    assert "https://" in text
    assert all(re.search(word, text, re.IGNORECASE) for word in ("vuln", "disclos", r"\b\d+ days"))


def test_dependabot_watches_every_dockerfile(project: Path) -> None:
    """It moves the tags of the base images, and their digests."""
    watched = yaml.safe_load((project / ".github" / "dependabot.yml").read_text(encoding="utf-8"))["updates"]
    [folder] = [entry["directory"] for entry in watched if entry["package-ecosystem"] == "docker"]
    found = [path.parent for path in project.rglob("Dockerfile")]
    assert found == [project / folder.removeprefix("/")]
    bases = re.findall(r"^FROM (\S*[:/]\S*)", (found[0] / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert bases
    assert all(re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", base) for base in bases)


def release(project: Path, step: str, tmp_path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a step of the release as GitHub does, with a docker that only says what it was asked to do."""
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\necho docker "$@"\n[ "$1" != login ] || cat\n')
    docker.chmod(0o755)
    [script] = [each["run"] for each in steps(project) if each.get("name", "").startswith(step)]
    return subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=project,
        env={
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "GITHUB_ENV": str(tmp_path / "env"),
            "GITHUB_OUTPUT": str(tmp_path / "output"),
            "RUNNER_TEMP": str(tmp_path),
            "PYTHON": sys.executable,
            **env,
        },
        stdout=subprocess.PIPE,
        text=True,
    )


def named(project: Path, tmp_path: Path, tag: str = "v1") -> dict[str, str]:
    """Return what the release says of the image of ``project``, which is committed."""
    line = ["git", "-c", "user.name=user", "-c", "user.email=user@localhost"]
    for arguments in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "as it is"]):
        subprocess.run([*line, *arguments], cwd=project, check=True)
    (tmp_path / "env").write_text("")
    assert release(project, "Name", tmp_path, RELEASE=tag).returncode == 0
    return dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())


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
    project = bake(image=image)
    env = named(project, tmp_path)
    assert (env["IMAGE"], env["REGISTRY"]) == (image, registry)
    done = release(project, "Log in", tmp_path, **env, USERNAME="name", PASSWORD="word")
    assert done.stdout == f"docker login {registry} --username name --password-stdin\nword\n"


@pytest.mark.parametrize("missing", ["USERNAME", "PASSWORD"])
def test_a_release_without_credentials_says_which_secrets_to_set(bake: Bake, tmp_path: Path, missing: str) -> None:
    env = {"REGISTRY": "docker.io", "USERNAME": "name", "PASSWORD": "word", "TOKEN": "own", missing: ""}
    done = release(bake(), "Log in", tmp_path, **env)
    assert done.returncode == 1
    assert done.stdout.startswith("::error::Set the secrets REGISTRY_USERNAME and REGISTRY_PASSWORD")


@pytest.mark.parametrize(("password", "name"), [("", "actor"), ("word", "name")])
def test_a_release_to_ghcr_needs_no_secret(bake: Bake, tmp_path: Path, password: str, name: str) -> None:
    env = {"REGISTRY": "ghcr.io", "GITHUB_ACTOR": "actor", "TOKEN": "own", "USERNAME": "name", "PASSWORD": password}
    done = release(bake(), "Log in", tmp_path, **env)
    assert done.stdout == f"docker login ghcr.io --username {name} --password-stdin\n{password or 'own'}\n"


def test_a_release_has_its_own_tag_and_the_commits_and_its_digest_is_attested(bake: Bake, tmp_path: Path) -> None:
    """The commit's is the one for which ``aggregating-worker deploy`` asks; none is called ``latest``."""
    project = bake(image="me/worker")
    env = named(project, tmp_path, "v1")
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=project, text=True)[:12]
    (tmp_path / "pushed.json").write_text('{"containerimage.digest": "sha256:0123"}')
    done = release(project, "Push", tmp_path, **env, RELEASE="v1")
    assert re.findall(r"--tag (\S+)", done.stdout) == ["me/worker:v1", f"me/worker:{commit}"]
    assert (tmp_path / "output").read_text() == "digest=sha256:0123\n"
    [push, attest] = [step for step in steps(project) if step.get("name", "").startswith(("Push", "Attest"))]
    assert "private" in attest["if"]  # where GitHub attests on its Enterprise plan only
    assert attest["with"]["subject-digest"] == f"${{{{ steps.{push['id']}.outputs.digest }}}}"
    (tmp_path / "pushed.json").write_text("{}")
    assert release(project, "Push", tmp_path, **env, RELEASE="v1").returncode


@pytest.mark.parametrize("tag", ["v1+build", "release/1", "$(reboot)", "-v", "a" * 129, ""])
def test_a_tag_that_no_image_can_have_is_refused(bake: Bake, tmp_path: Path, tag: str) -> None:
    done = release(bake(), "Name", tmp_path, RELEASE=tag)
    assert done.returncode == 1
    assert done.stdout.startswith("::error::An image cannot have the tag")
