"""Change the worker's side of the library in one place at a time, and see whether a test notices: ``make mutants``.

mutmut makes the mutants: all those of a file stand in it side by side, and ``MUTANT_UNDER_TEST`` in the environment
chooses one, in every process that a test starts. They are run here, since mutmut's own runner knows only of what a test
calls in its own process, and half of the worker runs in others.
"""

import json
import os
import random
import shutil
import signal
import sys
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import pytest
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.mutation.trampoline_templates import trampoline_imports

ROOT = Path(__file__).parents[2]
COPY = ROOT / "build" / "mutants"
HITS, TIMES = COPY / "hits.txt", COPY / "times.txt"
FILES = " ".join(f"library/src/aggregating_worker/{name}/*.py" for name in ("calls", "process", "outcome", "delivery"))
TESTS = """process sender threads file_results images slots stream properties overflow result post wire request answer
pictures files bucket parts progress context single loop folders devices every_fault processes faults"""
MOST = 60.0
"""Seconds that a mutant's tests may take together: the quickest are run first, and what takes longer is left out."""
STARTING, SLOWER = 15.0, 4.0
"""A mutant hangs if a test takes so many seconds and so many times what it takes without it."""
WITHOUT = 150.0
"""Seconds that a file of tests is taken to need, before it is known how many it does."""
QUIET = ("--quiet", "--no-header", "--no-summary", "-p", "no:cacheprovider")
SURVIVED = (pytest.ExitCode.OK, pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED)
FORK = get_context("fork")


class Times:
    """A pytest plugin: writes down how long each step of a test takes, and whether it passes."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        with TIMES.open("a") as file:
            file.write(json.dumps((report.nodeid, report.passed, report.duration)) + "\n")


class Limits(dict[str, float]):
    """A pytest plugin: gives each test so many times the seconds that it has here."""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            item.add_marker(pytest.mark.timeout(STARTING + SLOWER * self[item.nodeid]))


def make(files: list[Path]) -> dict[str, tuple[Path, str]]:
    """Copy the library and put the mutants into ``files``; return each one's file, and its text with all of them."""
    shutil.rmtree(COPY, ignore_errors=True)
    for name in ("library", "{{cookiecutter.project_slug}}"):
        shutil.copytree(ROOT / name, COPY / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for file in (ROOT / "README.md", Path(__file__).with_name("hit.py")):
        shutil.copy(file, COPY if file.suffix == ".md" else COPY / "library" / "src")
    os.chdir(COPY / "library")
    made = {}
    for file in files:
        mutated = mutate_file_contents(str(file), (COPY / file).read_text())
        module = ".".join(file.with_suffix("").parts[2:])
        made.update({f"{module}.{name}": (file, mutated.code) for name in mutated.mutant_names})
        hooked = mutated.code.replace(trampoline_imports.strip(), "from hit import MutantDict, _mutmut_mutated")
        (COPY / file).write_text(hooked)
    return made


def _run(mutant: str, tests: dict[str, float]) -> None:
    os.setsid()
    os.environ |= {"MUTANT_UNDER_TEST": mutant, "HITS": str(HITS)}
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    if mutant == "stats":
        os._exit(pytest.main([*QUIET, *tests], [Times()]))
    os._exit(pytest.main([*QUIET, "--exitfirst", *tests], [Limits(tests)]))


def survives(mutant: str, tests: dict[str, float]) -> bool:
    """Return whether the tests pass with a mutant, or there are none; each is given with its seconds without one."""
    if not tests:
        return True
    process = FORK.Process(target=_run, args=(mutant, tests))
    process.start()
    process.join(STARTING + SLOWER * sum(tests.values()))
    with suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()
    return process.exitcode in SURVIVED


def quickest(passed: dict[str, float], callers: set[str]) -> dict[str, float]:
    """Return those of the tests that take ``MOST`` seconds together, the quickest first."""
    tests: dict[str, float] = {}
    for test in sorted(callers, key=passed.__getitem__):
        if sum(tests.values()) + passed[test] < MOST:
            tests[test] = passed[test]
    return tests


def main() -> None:
    """Run the mutants of ``FILES``, or ``SAMPLE`` of them by ``SEED``; print what survives, and the score."""
    patterns = (os.environ.get("FILES") or FILES).split()
    made = make([path.relative_to(ROOT) for pattern in patterns for path in sorted(ROOT.glob(pattern))])
    mutants = [*made]
    if sample := os.environ.get("SAMPLE"):
        mutants = random.Random(os.environ.get("SEED")).sample(mutants, int(sample))  # noqa: S311  # no secret
    paths = [f"tests/test_{name}.py" for name in (os.environ.get("TESTS") or TESTS).split()]
    sys.path[:0] = ["src", "."]
    os.environ["PYTHONPATH"] = os.pathsep.join((str(Path("src").resolve()), os.environ["PYTHONPATH"]))
    if pytest.main([*QUIET, "--collect-only", *paths]):  # every fork would import them
        sys.exit("The tests cannot be collected.")
    tried, survived = Counter[str](), Counter[str]()
    with ProcessPoolExecutor(mp_context=FORK) as pool:
        for each in [pool.submit(survives, "stats", {path: WITHOUT}) for path in paths]:
            each.result()
        passed = defaultdict[str, float](float)
        for test, fine, seconds in map(json.loads, TIMES.read_text().splitlines()):
            passed[test] += seconds if fine else MOST  # it fails without a mutant, or is skipped
        callers = defaultdict[str, set[str]](set)
        for function, _, caller in (line.partition(" ") for line in HITS.read_text().splitlines()):
            callers[function] |= {test for test in passed if caller in (test, test.partition("::")[0])}
        running = {}
        for mutant in mutants:
            tests = quickest(passed, callers[mutant.partition("__mutmut_")[0]])
            running[pool.submit(survives, mutant, tests)] = mutant
        for done, future in enumerate(as_completed(running), 1):
            mutant = running[future]
            file, code = made[mutant]
            tried[file.parent.name] += 1
            if future.result():
                survived[file.parent.name] += 1
                print(f"\n{get_diff_for_mutant(mutant, code, file)}", flush=True)
            print(f"\r{done:,} of {len(mutants):,}", end="", file=sys.stderr)
    print()
    for folder, number in tried.items():
        print(f"{folder}: {1 - survived[folder] / number:.1%} of {number:,}")
    print(f"Mutation score: {100 * (1 - survived.total() / tried.total()):.1f} %")


if __name__ == "__main__":
    main()
