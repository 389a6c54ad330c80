"""The parts of a README, or of another page, that a command writes."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def write(command: str, *parts: str, page: Path = README) -> None:
    """Put each of ``parts`` between the next two marks of ``make command`` in ``page``: whole lines, or words."""
    page.write_text(_with(command, parts, page), encoding="utf-8")


def differs(command: str, *parts: str, page: Path = README) -> bool:
    """Whether ``write`` would change ``page``."""
    return _with(command, parts, page) != page.read_text(encoding="utf-8")


def _with(command: str, parts: tuple[str, ...], page: Path) -> str:
    marked = re.compile(f"(?<=<!-- make {command}: begin -->).*?(?=<!-- make {command}: end -->)", re.DOTALL)
    left = iter(f"\n{part}" if part.endswith("\n") else part for part in parts)
    return marked.sub(lambda _: next(left), page.read_text(encoding="utf-8"))
