"""The parts of README.md that a command writes."""

from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def part(command: str, text: str) -> tuple[str, str]:
    """Return the README as it is, and as it would be with ``text`` between the two marks of ``make command``."""
    begin, end = f"<!-- make {command}: begin -->\n", f"<!-- make {command}: end -->"
    before = README.read_text(encoding="utf-8")
    head, _, rest = before.partition(begin)
    return before, head + begin + text + end + rest.partition(end)[2]


def write(command: str, text: str) -> None:
    """Put ``text`` between the two marks of ``make command``."""
    _, after = part(command, text)
    README.write_text(after, encoding="utf-8")
