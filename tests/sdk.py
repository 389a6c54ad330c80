"""``make test-sdk``: every test, with each SDK that matters, and what that says of the range in ``pyproject.toml``."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from tests.conftest import LIBRARY

UV = str(Path(sys.executable).with_name("uv"))
ALL_TESTS = ["-m", "pytest", "--numprocesses", "auto", "--dist", "loadscope"]
VENVS = Path(".venv", "sdk")
"""A virtual environment for each version: the locked packages, and that SDK in place of the locked one."""
SECONDS = 1_800
"""How long all tests may take: a worker whose SDK has lost a job can wait for ever."""


def supported() -> Requirement:
    """Return what ``pyproject.toml`` requires of the SDK."""
    project = tomllib.loads((LIBRARY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [sdk] = [each for each in map(Requirement, project["dependencies"]) if each.name == "runpod"]
    return sdk


def matrix() -> dict[str, list[str]]:
    """Return the versions to test, from the oldest supported to the newest pre-release, and why each of them is."""
    locked = re.search(r"^runpod==(\S+)", (LIBRARY / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert locked, "make lock names the SDK in requirements.txt"
    found: dict[str, list[str]] = {}
    for version, why in (
        (find(str(supported()), "--resolution=lowest"), "oldest supported"),
        (locked[1], "locked"),
        (find("runpod<2"), "newest 1.x"),
        (find("runpod", "--prerelease=allow"), "newest, with pre-releases"),
    ):
        found.setdefault(version, []).append(why)
    return found


def find(requirement: str, *options: str) -> str:
    """Return the version that meets ``requirement``, of those that can be installed here."""
    line = [UV, "pip", "compile", "--quiet", "--no-deps", "--no-header", "--no-annotate", *options, "-"]
    answer = subprocess.run(line, input=requirement, stdout=subprocess.PIPE, text=True)
    if answer.returncode:
        sys.exit("The versions of the SDK cannot be looked up: see above, or name them, SDK=1.12.0 for one.")
    return answer.stdout.strip().removeprefix("runpod==")


def passes(version: str) -> bool:
    """Install the locked packages and this ``version`` of the SDK; return whether every test passes in ``SECONDS``."""
    venv = VENVS / version
    python = str(venv / "bin" / "python")
    for line in (
        ["make", "--no-print-directory", f"VENV={venv}", f"{venv}/bin/.ready-dev"],
        [UV, "pip", "install", "--quiet", "--prerelease=allow", "--python", python, f"runpod=={version}"],
    ):
        if subprocess.run(line, cwd=LIBRARY).returncode:
            sys.exit(f"runpod {version} cannot be installed: see above.")
    print(f"runpod {version}", flush=True)
    try:
        return subprocess.run([python, *ALL_TESTS], cwd=LIBRARY, timeout=SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"The tests have not ended within {SECONDS} s.")
        return False


def main() -> None:
    """Test the versions that were named, or ``matrix``; exit 1 if one fails that ``pyproject.toml`` allows."""
    versions = {version: ["named"] for version in sys.argv[1:]} or matrix()
    allowed = supported()
    broken = False
    lines = []
    for version, reasons in versions.items():
        passed = passes(version)
        inside = allowed.specifier.contains(version, prereleases=True)
        broken |= inside and not passed
        lines.append(
            f"runpod {version:<10} {'passes' if passed else 'FAILS'}, "
            f"and {'is' if inside else 'is not'} supported   ({', '.join(reasons)})"
        )
    print(f"\n{allowed} is what pyproject.toml supports.", *lines, sep="\n")
    if broken:
        sys.exit("Narrow the range in pyproject.toml to what passes, or mend what fails.")


if __name__ == "__main__":
    main()
