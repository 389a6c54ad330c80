"""The parts of a README, or of another page, that a command writes."""

from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def write(command: str, text: str, readme: Path = README) -> None:
    """Put ``text`` between the two marks of ``make command`` in ``readme``."""
    readme.write_text(_with(command, text, readme), encoding="utf-8")


def differs(command: str, text: str, readme: Path = README) -> bool:
    """Whether ``write`` would change ``readme``."""
    return _with(command, text, readme) != readme.read_text(encoding="utf-8")


def _with(command: str, text: str, readme: Path) -> str:
    begin, end = f"<!-- make {command}: begin -->\n", f"<!-- make {command}: end -->"
    head, _, rest = readme.read_text(encoding="utf-8").partition(begin)
    return head + begin + text + end + rest.partition(end)[2]
