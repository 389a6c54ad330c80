"""An image has another name if, and only if, it is built from other files: the commit, or a hash of the files."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aggregating_worker.deploy import tag
from aggregating_worker.deploy.tag import Context, image_tag

FILES = {
    "Dockerfile": "FROM scratch\nCOPY . .\n",
    "Makefile": "image:\n",
    ".dockerignore": "**/.*\n*.md\n**/__pycache__\nDockerfile\nMakefile\n",
    ".gitignore": "*.weights\n",
    "README.md": "notes\n",
    "task.py": "print()\n",
    "lib/model.py": "print()\n",
}
OF_FILES = re.compile(r"files-[0-9a-f]{12}")


@pytest.fixture(autouse=True)
def git_of_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Leave out what this machine's Git is told."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "user")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "user@localhost")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        write(tmp_path / "project" / name, text)
    return tmp_path / "project"


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def git(folder: Path, *arguments: str) -> str:
    return subprocess.check_output(["git", *arguments], cwd=folder, text=True).strip()


def commit(folder: Path, *init: str) -> str:
    """Commit all that is in ``folder``; return 12 digits of the commit."""
    git(folder, "init", "--quiet", *init)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "as it is")
    return git(folder, "rev-parse", "HEAD")[:12]


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
def test_what_is_committed_has_the_commits_name(project: Path, object_format: str) -> None:
    first = commit(project, f"--object-format={object_format}")
    assert image_tag(project) == first
    write(project / "task.py", "print(1)\n")
    changed = image_tag(project)
    assert OF_FILES.fullmatch(changed)
    write(project / "task.py", "print(2)\n")
    assert image_tag(project) not in (first, changed)
    git(project, "add", "--all")
    assert image_tag(project) not in (first, changed)
    second = commit(project)
    assert image_tag(project) == second != first


@pytest.mark.parametrize("name", ["task.py", "lib/model.py", "Dockerfile", "Makefile"])
@pytest.mark.parametrize("committed", [True, False])
def test_each_file_that_the_image_is_built_from_counts(project: Path, name: str, committed: bool) -> None:
    if committed:
        commit(project)
    before = image_tag(project)
    (project / name).write_text("other\n")
    other = image_tag(project)
    (project / name).unlink()
    assert len({before, other, image_tag(project)}) == 3
    write(project / name, FILES[name])
    assert image_tag(project) == before


@pytest.mark.parametrize("name", ["new.py", "lib/deep/new.txt", "ignored.weights"])
def test_a_file_that_git_does_not_have_counts_also_where_it_is_to_ignore_it(project: Path, name: str) -> None:
    first = commit(project)
    write(project / name, "1")
    before = image_tag(project)
    write(project / name, "2")
    assert len({first, before, image_tag(project)}) == 3


@pytest.mark.parametrize("name", ["README.md", ".env", "lib/.hidden", "lib/__pycache__/a.pyc", ".venv/lib/a.py"])
@pytest.mark.parametrize("committed", [True, False])
def test_a_file_that_stays_out_of_the_image_does_not_count(project: Path, name: str, committed: bool) -> None:
    if committed:
        commit(project)
    before = image_tag(project)
    write(project / name, "other\n")
    assert image_tag(project) == before


def test_the_mode_of_a_file_and_the_target_of_a_link_count_and_an_empty_folder_does_not(project: Path) -> None:
    (project / "link").symlink_to("task.py")
    (project / "folder").symlink_to("lib")
    assert image_tag(project) != commit(project) == image_tag(project)
    (project / "empty" / "deep").mkdir(parents=True)
    tags = [image_tag(project)]
    (project / "task.py").chmod(0o755)
    tags.append(image_tag(project))
    (project / "task.py").chmod(0o644)
    assert image_tag(project) == tags[0]
    (project / "link").unlink()
    (project / "link").symlink_to("nowhere")
    tags.append(image_tag(project))
    (project / "folder").unlink()
    tags.append(image_tag(project))
    assert len(set(tags)) == 4


def test_without_git_or_a_repository_or_a_commit_it_is_the_files(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = image_tag(project)
    assert OF_FILES.fullmatch(alone)
    git(project, "init", "--quiet")
    assert image_tag(project) == alone
    commit(project)
    monkeypatch.setenv("PATH", "/nowhere")
    assert image_tag(project) == alone
    elsewhere = shutil.copytree(project, project.parent / "elsewhere", ignore=shutil.ignore_patterns(".git"))
    assert image_tag(elsewhere) == alone


def test_a_project_within_a_repository_has_the_repositorys_commit(project: Path) -> None:
    write(project.parent / "other" / "task.py", "of another\n")
    write(project.parent / "later.py", "of another\n")
    first = commit(project.parent)
    assert image_tag(project) == first
    write(project.parent / "later.py", "changed\n")
    assert image_tag(project) == first
    write(project / "lib" / "model.py", "changed\n")
    assert OF_FILES.fullmatch(image_tag(project))


def test_a_project_that_the_repository_above_does_not_have_is_its_files(project: Path) -> None:
    alone = image_tag(project)
    write(project.parent / ".gitignore", "project\n")
    commit(project.parent)
    assert image_tag(project) == alone


def test_what_is_in_a_submodule_counts(project: Path) -> None:
    write(project.parent / "shared" / "shared.py", "1")
    commit(project.parent / "shared")
    git(project, "init", "--quiet")
    git(project, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(project.parent / "shared"))
    first = commit(project)
    before = image_tag(project)
    write(project / "shared" / "shared.py", "2")
    changed = image_tag(project)
    git(project, "submodule", "--quiet", "deinit", "--force", "shared")
    assert len({first, before, changed, image_tag(project)}) == 4


ODD = [
    "two words",
    "line\nfeed",
    "tab\t",
    "'quoted' \"twice\"",
    "-n",
    "ünï 😀",
    "back\\slash",
    "$(HOME)",
    "*",
    "\udcff\udcfe",
]


@pytest.mark.parametrize("name", ODD)
def test_a_name_is_only_a_name(project: Path, name: str) -> None:
    write(project / "lib" / name / name, "1")
    first = commit(project)
    assert image_tag(project) == first
    write(project / "lib" / name / name, "2")
    assert image_tag(project) != first


NAMES = st.sampled_from(["a", "b", "a.py", "files-", "0"])
TREES = st.dictionaries(st.tuples(NAMES) | st.tuples(st.just("folder"), NAMES), st.binary(max_size=3), max_size=4)


@settings(deadline=None)
@given(TREES, TREES)
@example({("a",): b"b"}, {("b",): b"a"})
@example({("folder", "a"): b""}, {("a",): b""})
def test_two_projects_have_one_tag_if_and_only_if_their_files_are_equal(
    one: dict[tuple[str, ...], bytes], other: dict[tuple[str, ...], bytes]
) -> None:
    tags = []
    for tree in (one, other):
        with TemporaryDirectory() as folder:
            for parts, content in tree.items():
                file = Path(folder, *parts)
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(content)
            tags.append(image_tag(Path(folder)))
    assert (tags[0] == tags[1]) is (one == other)
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", each) for each in tags)


@pytest.mark.parametrize(
    ("rules", "sent", "kept_out"),
    [
        ("", "a .a a/b", ""),
        ("# a\n\n  \n", "a #", ""),
        ("a", "b/a aa", "a a/b a/b/c"),
        ("/a/\n./b\nc//d/", "c c/e/d d/a", "a a/x b c/d c/d/e"),
        ("*", "", "a .a a/b"),
        ("*.md", "a/b.md b.mdx", "b.md b.md/c"),
        ("*/*.md", "b.md a/b/c.md", "a/b.md"),
        ("**/*.md", "b.mdx", "b.md a/b.md a/b/c.md"),
        ("**/a", "ba ab", "a b/a c/b/a b/a/c"),
        ("a/**", "a b/a", "a/b a/b/c"),
        ("a/**/c", "c b/a/c a/b/cc", "a/c a/b/c a/b/b/c"),
        ("**", "", "a a/b"),
        ("**.py", "a.pyc", "a.py b/a.py b/a.py/c"),
        ("**foo", "foox", "foo xfoo a/xfoo"),
        ("*\n!**.py", "b/a.py a.py", "a.txt b/c"),
        ("?.py", "ab.py /.py", "a.py b.py"),
        ("*.py[cod]", "a.py a.pyx", "a.pyc a.pyo"),
        ("[^a]b", "ab", "bb cb"),
        ("a.b+(c)", "aXb+(c) a.bb(c)", "a.b+(c)"),
        (r"\*a", "ba", "*a"),
        ("*\n!a", "a a/b", "b .a"),
        ("*\n!a\na/b", "a a/c", "b a/b a/b/c"),
        ("*.md\n!README*.md\nREADME-secret.md", "README.md README-a.md", "a.md README-secret.md"),
        ("a\n!a/b", "a/b a/b/c", "a/c"),
        ("! b\nb\n!b", "b", ""),
        ("  a  \n\tb\t", "c", "a b"),
        ("a\r\nb\r\n", "c", "a b"),
        ("\ufeffa", "b", "a"),
        ("ü\n😀*", "u", "ü 😀😀"),
        ("[", "a", ""),
        ("..\n.\n../a", "a", ""),
    ],
)
def test_dockerignore_lets_through_what_docker_says(tmp_path: Path, rules: str, sent: str, kept_out: str) -> None:
    """https://docs.docker.com/build/concepts/context/#dockerignore-files"""
    (tmp_path / ".dockerignore").write_bytes(rules.encode())
    context = Context(tmp_path)
    assert [path for path in sent.split() if not context.has(path)] == []
    assert [path for path in kept_out.split() if context.has(path)] == []


def test_what_a_rule_lets_in_below_a_folder_that_is_kept_out_counts(project: Path) -> None:
    write(project / ".dockerignore", "lib\n!lib/model.py\n")
    before = image_tag(project)
    write(project / "lib" / "other.py", "1")
    assert image_tag(project) == before
    write(project / "lib" / "model.py", "1")
    assert image_tag(project) != before


def test_the_rules_of_the_dockerfile_itself_come_first(tmp_path: Path) -> None:
    write(tmp_path / ".dockerignore", "*")
    write(tmp_path / "Dockerfile.dockerignore", "tests")
    assert Context(tmp_path).has("task.py")
    assert not Context(tmp_path).has("tests")


def test_it_needs_nothing_but_python_itself(project: Path) -> None:
    """The Makefile calls it before anything is installed."""
    line = [sys.executable, "-I", "-S", tag.__file__]
    assert subprocess.check_output(line, cwd=project, text=True) == f"{image_tag(project)}\n"


def test_a_file_that_cannot_be_read_is_a_sentence(project: Path) -> None:
    (project / ".dockerignore").unlink()
    (project / ".dockerignore").mkdir()
    done = subprocess.run([sys.executable, tag.__file__], cwd=project, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", ".dockerignore cannot be read: Is a directory.\n")
