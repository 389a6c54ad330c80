"""``make test-sdk`` of a project: its tests, with each SDK that matters."""

import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

UV = str(Path(sys.executable).with_name("uv"))
VENVS = Path(".venv", "sdk")
"""A virtual environment for each version: the locked packages, and that SDK in place of the locked one."""
SECONDS = 1_800
"""How long the tests may take: a worker whose SDK has lost a job can wait for ever."""


def supported() -> Requirement:
    """Return what the library requires of the SDK."""
    [sdk] = [each for each in map(Requirement, requires("aggregating-worker") or ()) if each.name == "runpod"]
    return sdk


def matrix() -> dict[str, list[str]]:
    """Return the versions to test, from the oldest supported to the newest pre-release, and why each of them is."""
    locked = re.search(r"^runpod==(\S+)", Path("requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
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
    """Install the locked packages and this ``version`` of the SDK; return whether the tests pass in ``SECONDS``."""
    venv = VENVS / version
    python = str(venv / "bin" / "python")
    for line in (
        ["make", "--no-print-directory", f"VENV={venv}", f"{venv}/bin/.ready"],
        [UV, "pip", "install", "--quiet", "--prerelease=allow", "--python", python, f"runpod=={version}"],
    ):
        if subprocess.run(line).returncode:
            sys.exit(f"runpod {version} cannot be installed: see above.")
    print(f"runpod {version}", flush=True)
    try:
        return subprocess.run([python, "-m", "pytest"], timeout=SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"The tests have not ended within {SECONDS} s.")
        return False


def main() -> None:
    """Test the versions that were named, or ``matrix``; exit 1 if one fails that the library supports."""
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
    print(f"\n{allowed} is what aggregating-worker supports.", *lines, sep="\n")
    if broken:
        sys.exit("An SDK that aggregating-worker supports fails: see above.")


if __name__ == "__main__":
    main()
