"""The library in the template is the one in ``library/``, and what it is made of can be named again."""

import subprocess
import sys
import zipfile
from pathlib import Path

from tests.conftest import ROOT

VENDOR = ROOT / "{{cookiecutter.project_slug}}" / "vendor"


def test_the_wheel_is_what_the_library_builds(template: Path, tmp_path: Path) -> None:
    """To the byte, from a copy of what git would hand out, on any machine: uv_build is pinned."""
    uv = str(Path(sys.executable).with_name("uv"))
    line = [uv, "build", "--quiet", "--wheel", "--out-dir", str(tmp_path), str(template / "library")]
    subprocess.run(line, check=True)
    [built], [vendored] = tmp_path.glob("*.whl"), VENDOR.glob("*.whl")
    assert built.name == vendored.name
    assert built.read_bytes() == vendored.read_bytes(), "make wheel builds it anew"


def test_every_lock_of_a_bake_names_the_wheel_by_its_version(template: Path) -> None:
    [wheel] = VENDOR.glob("*.whl")
    version = (VENDOR / "version.txt").read_text().strip()
    assert wheel.name.startswith(version.replace("aggregating-worker==", "aggregating_worker-") + "-")
    for lock in [*VENDOR.parent.glob("starting_points/*/requirements.txt"), VENDOR.parent / "requirements-run.txt"]:
        assert f"\n{version} \\\n" in lock.read_text(encoding="utf-8"), lock


def test_the_wheel_has_the_page_and_the_types_and_no_test_of_its_own() -> None:
    [wheel] = VENDOR.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"aggregating_worker/local/page.html", "aggregating_worker/py.typed"} <= set(names)
    assert not [name for name in names if name.startswith("tests/")]
