"""What mutmut's mutants import, in the copy: it notes which test calls which function, in whichever process."""

import os
from collections.abc import Callable
from typing import Any

from mutmut.mutation import trampoline

_seen: set[str] = set()


def _kill(call: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """Return ``call`` but for what would end all processes of this machine's user: a mutant's process 1, or -1."""

    def kill(number: int, signal: int) -> None:
        if number in (-1, 0, 1):
            raise ProcessLookupError(number)
        call(number, signal)

    return kill


def hit(function: str, caller: Any = None) -> None:  # noqa: ARG001
    """Note a call; in a process that other tests may use, too, as of all tests of the file."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    line = f"{function} {test if str(os.getpid()) == os.environ['TESTING'] else test.partition('::')[0]}\n"
    if line not in _seen:
        _seen.add(line)
        with open(os.environ["HITS"], "a") as file:  # noqa: PTH123  # at each call of a function: quickly
            file.write(line)


trampoline.record_trampoline_hit = hit
os.kill, os.killpg = _kill(os.kill), _kill(os.killpg)
MutantDict, _mutmut_mutated = trampoline.MutantDict, trampoline.wrap_in_trampoline
