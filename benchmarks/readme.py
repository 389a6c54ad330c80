"""The parts of a README that a command writes."""

from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def part(command: str, text: str, readme: Path = README) -> tuple[str, str]:
    """Return ``readme`` as it is, and as it would be with ``text`` between the two marks of ``make command``."""
    begin, end = f"<!-- make {command}: begin -->\n", f"<!-- make {command}: end -->"
    before = readme.read_text(encoding="utf-8")
    head, _, rest = before.partition(begin)
    return before, head + begin + text + end + rest.partition(end)[2]


def write(command: str, text: str, readme: Path = README) -> None:
    """Put ``text`` between the two marks of ``make command`` in ``readme``."""
    _, after = part(command, text, readme)
    readme.write_text(after, encoding="utf-8")
