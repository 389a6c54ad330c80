"""The tag of the image that a project's files make: the commit or, where they differ from it, a hash of them.

Nothing is imported here but the standard library: the project's Makefile runs this file out of the wheel, on a machine
where nothing has been installed yet.
"""

import hashlib
import os
import posixpath
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

DIGITS = 12
"""How many digits of a commit or a hash are in a tag. Git's own abbreviation gets longer as a repository grows."""
BUILT_WITH = ("Dockerfile", "Makefile")
"""What says how to build, and counts whatever ``.dockerignore`` says of it."""
GLOB = re.compile(r"\*\*/?|\*|\?|\[([^]]+)\]|\\?(.)", re.DOTALL)


class Context:
    """The files of the folder ``project`` that Docker's builder is sent, which is up to its ``.dockerignore``."""

    def __init__(self, project: Path) -> None:
        self._project = project
        rules = project / "Dockerfile.dockerignore"  # which BuildKit reads in the other's place
        if not rules.exists():
            rules = project / ".dockerignore"
        lines = os.fsdecode(rules.read_bytes()).removeprefix("\ufeff").split("\n") if rules.exists() else []
        self._rules = [_rule(line.strip()) for line in lines if line.strip() and not line.startswith("#")]
        self._exceptions = any(lets_in for lets_in, _ in self._rules)

    def has(self, path: str) -> bool:
        """Whether the builder is sent ``path``, which is relative to the project.

        A rule holds for what it fits and for all below that; the last one that fits wins (moby/patternmatcher 0.6,
        ``MatchesOrParentMatches``).
        """
        sent = True
        for lets_in, fits in self._rules:
            if lets_in is not sent and fits.fullmatch(path):
                sent = lets_in
        return sent

    def files(self, below: str = "") -> Iterator[str]:
        """Yield the path of each file and each symbolic link."""
        for entry in os.scandir(self._project / below):
            path = below + entry.name
            if entry.is_dir(follow_symlinks=False):
                if self._exceptions or self.has(path):
                    yield from self.files(f"{path}/")
            elif (self.has(path) or path in BUILT_WITH) and (entry.is_symlink() or entry.is_file()):
                yield path


def main() -> None:
    """Print the tag of the project in this folder; exit 1 with a sentence if that cannot be told."""
    try:
        print(image_tag(Path()))
    except OSError as error:
        sys.exit(f"{error.filename} cannot be read: {error.strerror}.")


def image_tag(project: Path) -> str:
    """Return 12 digits of the commit if the image is built from what that has, else ``files-`` and 12 digits of a hash.

    The image is built from the files that Docker's builder is sent, the Dockerfile and the Makefile. Of a file its
    path, its content and whether it can be executed count, as for Git, and an empty folder is nothing. Raises
    ``OSError``.
    """
    context = Context(project)
    commit = _git(project, "rev-parse", "--verify", "HEAD").strip()
    committed = {}
    listed = _git(project, "ls-tree", "-r", "-z", commit) if commit else ""
    for entry in filter(None, listed.split("\0")):
        what, _, path = entry.partition("\t")
        if context.has(path) or path in BUILT_WITH:
            committed[path] = what
    algorithm = "sha256" if len(commit) == 64 else "sha1"  # the repository's object format
    files = {path: _as_in_git(project / path, algorithm) for path in context.files()}
    if commit and files == committed:
        return commit[:DIGITS]
    made_of = "\0".join(f"{what}\t{path}" for path, what in sorted(files.items()))
    return f"files-{hashlib.sha256(os.fsencode(made_of)).hexdigest()[:DIGITS]}"


def _rule(line: str) -> tuple[bool, re.Pattern[str]]:
    """Return whether a line of ``.dockerignore`` lets in what it fits, and the pattern of that and all below it."""
    path = posixpath.normpath(line.removeprefix("!").strip()).lstrip("/")
    if re.fullmatch(r"\*\*[^/*?\\[]+", path):  # ``**.py``: an ending of any path, as Docker has it
        return line.startswith("!"), re.compile(f".*{re.escape(path[2:])}(/.*)?", re.DOTALL)
    try:
        fits = re.compile(f"{GLOB.sub(_regex, path)}(/.*)?", re.DOTALL)
    except re.error:  # Docker refuses to build with such a line, and says so
        fits = re.compile("(?!)")
    return line.startswith("!"), fits


def _regex(found: re.Match[str]) -> str:
    match found[0]:
        case "*":
            return "[^/]*"
        case "?":
            return "[^/]"
        case "**" | "**/":
            return ".*" if found.end() == len(found.string) else "(.*/)?"
    return "[" + found[1].replace("[", "\\[") + "]" if found[1] else re.escape(found[2])


def _git(project: Path, *arguments: str) -> str:
    """Return what ``git`` says in the project's folder: nothing where there is no git, no repository or no commit."""
    try:
        asked = subprocess.run(["git", *arguments], cwd=project, capture_output=True)  # noqa: S607
    except OSError:
        return ""
    return "" if asked.returncode else os.fsdecode(asked.stdout)


def _as_in_git(file: Path, algorithm: str) -> str:
    """Return the mode, the type and the object's name that ``file`` as it is would have in a tree of Git."""
    status = file.lstat()
    blob = hashlib.new(algorithm, b"blob %d\0" % status.st_size, usedforsecurity=False)
    if file.is_symlink():
        blob.update(os.fsencode(file.readlink()))
        return f"120000 blob {blob.hexdigest()}"
    with file.open("rb") as content:
        hashlib.file_digest(content, lambda: blob)
    return f"{'100755' if status.st_mode & 0o100 else '100644'} blob {blob.hexdigest()}"


if __name__ == "__main__":
    main()
