"""What was measured stands between the marks of the command that wrote it, and nowhere else: prose would outlive it."""

import re
from pathlib import Path

import pytest

import readme
import speed
from chart import Row
from tests.conftest import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "library" / "README.md",
    ROOT / "{{cookiecutter.project_slug}}" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
WRITTEN = re.compile(r"<!-- make (\w+): begin -->(.*?)<!-- make \1: end -->", re.DOTALL)
SHOWN = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
"""Code, and what a command is shown to print."""
FIGURE = re.compile(
    r"\d[\d.,]* (?:µs|ms|s|seconds?|minutes?|hours?|days?|bytes|kB|MB|GB|times|a second)\b|\d[\d.,]* ?(?:%|×)"
    r"|(?:times|twice) (?:as (?:fast|long|slow)|faster|slower|the \w+ time)\b"
)
BOUNDS = (
    "20 ms, 50 ms, 0.5 s, 1 s, 4 s, 5 s, 10 s, 20 s, 20 seconds, 30 s, 60 s, 90 s, 100 s, 100 seconds, 120 s, 600 s, "
    "7 days, 90 days, 40 bytes, 100 bytes, 100 kB, 1 MB, 10 MB, 16 MB, 20 MB, 200 MB, 400 MB, 1 GB"
).split(", ")
"""What nobody measured: limits, defaults and sizes, of the platform and of what is here."""


def figures(text: str) -> list[str]:
    """Return the figures in what no command has written."""
    return FIGURE.findall(" ".join(SHOWN.sub("", WRITTEN.sub("", text)).split()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_was_measured_is_in_a_part_that_a_command_wrote(page: Path) -> None:
    """A limit or a default goes into ``BOUNDS``; what was measured, into the part that its command writes."""
    assert [figure for figure in figures(page.read_text(encoding="utf-8")) if figure not in BOUNDS] == []


def test_every_bound_is_still_said_somewhere() -> None:
    said = {figure for page in PAGES for figure in figures(page.read_text(encoding="utf-8"))}
    assert {*BOUNDS} - said == set()


def test_the_first_words_on_speed_are_of_the_table_below_them() -> None:
    words, table = (text for command, text in WRITTEN.findall(readme.README.read_text("utf-8")) if command == "bench")
    ratios = re.findall(r"^\| ([^|]+) \|.*\| \*\*(\S+) \(.*$", table, re.MULTILINE)
    assert speed.headline([Row(case, [float(ratio)], [1.0]) for case, ratio in ratios]) == words


def test_every_part_stands_where_a_command_would_write_it() -> None:
    commands = re.findall(r"^(\w+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        written = WRITTEN.findall(text)
        assert {command for command, _ in written} <= {*commands}
        assert text.count("<!-- ") == 2 * len(written)
        for command in commands:
            parts = (part.removeprefix("\n") for name, part in written if name == command)
            assert not readme.differs(command, *parts, page=page)
