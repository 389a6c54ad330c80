"""Change the worker's side of the library in one place at a time, and see whether a test notices: ``make mutants``.

mutmut makes the mutants: all those of a file stand in it side by side, and ``MUTANT_UNDER_TEST`` in the environment
chooses one, in every process that a test starts. They are run here, since mutmut's own runner knows only of what a test
calls in its own process, and half of the worker runs in others.
"""

import ast
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
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
TESTS = """simulation beside inside many_jobs single process sender threads file_results images slots stream properties
overflow result post wire request answer schema bucket parts progress context devices"""
"""Not those of a whole worker that wait for seconds at most: where much else runs, they fail without a mutant, too."""
MOST = 60.0
"""Seconds that a mutant's tests may take together: the quickest are run first, and what takes longer is left out."""
STARTING, SLOWER = 30.0, 4.0
"""A mutant hangs if a test takes so many seconds and so many times what it takes without it."""
WITHOUT = 10.0
"""Seconds that a test is taken to need, before it is known how many it does."""
QUIET = ("--quiet", "--no-header", "--no-summary", "--capture=no", "-p", "no:cacheprovider")
NOT = ("-k", "not planted and not a_seed_is")
"""Without tests of the simulation that take long, and run where no mutant is."""
SURVIVED, KILLED, HANGS = 0, 1, 2
FORK = get_context("fork")
_collected: dict[str, pytest.Item] = {}


class Forks:
    """A pytest plugin: once the tests are collected, ``run`` has some of them run in one fork after another."""

    def __init__(self, run: Callable[[], None]) -> None:
        self._run = run

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            sys.exit("The tests cannot be collected.")
        _collected.update({test.nodeid: test for test in session.items})
        gc.freeze()  # a collection in a fork would copy what it shares with this process
        self._run()
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if os.environ["MUTANT_UNDER_TEST"] == "stats":
            with TIMES.open("a") as file:
                file.write(json.dumps((report.nodeid, report.when, report.passed, report.duration)) + "\n")
        elif report.failed:
            os._exit(HANGS if "from pytest-timeout" in report.longreprtext else KILLED)


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


def refused(made: dict[str, tuple[Path, str]]) -> set[str]:
    """Return the mutants that ``make lint`` would notice: what mypy says of each, and not of the same lines without."""
    names = {(file, mutant.rpartition(".")[2]): mutant for mutant, (file, _) in made.items()}
    standing = {
        (f"{file}", line): names[file, function.name]
        for file in {file for file, _ in made.values()}
        for function in ast.walk(ast.parse((COPY / file).read_text()))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and (file, function.name) in names
        for line in range(function.lineno, (function.end_lineno or 0) + 1)
    }
    command = [sys.executable, "-m", "mypy", "--output", "json", "--cache-dir", str(COPY / "types"), "src"]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout
    errors = [error for error in map(json.loads, said.splitlines()) if error["severity"] == "error"]
    of = {(standing.get((file := f"library/{each['file']}", each["line"])), file, each["message"]) for each in errors}
    always = {(file, message) for mutant, file, message in of if mutant is None}
    return {mutant for mutant, file, message in of if mutant and (file, message) not in always}


def _run(mutant: str, tests: dict[str, float]) -> None:
    os.setsid()
    os.environ |= {"MUTANT_UNDER_TEST": mutant, "HITS": str(HITS), "TESTING": str(os.getpid())}
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    for name, following in zip(tests, [*tests, None][1:], strict=True):
        test = _collected[name]
        test.add_marker(pytest.mark.timeout(STARTING + SLOWER * tests[name]))
        test.ihook.pytest_runtest_protocol(item=test, nextitem=_collected[following] if following else None)
    os._exit(SURVIVED)


def outcome(mutant: str, tests: dict[str, float]) -> int:
    """Run the tests with a mutant, each given with its seconds without one; return what came of it.

    It has survived, too, if they do not end in the time that all of them have, and no test has had too much of it.
    """
    process = FORK.Process(target=_run, args=(mutant, tests))
    process.start()
    process.join(2 * (STARTING + SLOWER * sum(tests.values())))
    status = process.exitcode
    with suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()
    return status or SURVIVED


def quickest(seconds: dict[str, float], callers: set[str]) -> dict[str, float]:
    """Return those of the tests that take ``MOST`` seconds together: the quickest, and of these file by file."""
    tests: dict[str, float] = {}
    files = defaultdict[str, float](float)
    for test in sorted(callers, key=seconds.__getitem__):
        if sum(files.values()) + seconds[test] > MOST:
            break
        tests[test] = seconds[test]
        files[_file(test)] += seconds[test]
    return dict(sorted(tests.items(), key=lambda each: (files[_file(each[0])], _file(each[0]))))


def _file(test: str) -> str:
    return test.partition("::")[0]


def run(made: dict[str, tuple[Path, str]], mutants: list[str]) -> None:
    """Run the mutants; print what survives, and the score."""
    of = {mutant: made[mutant][0].parent.name for mutant in mutants}
    tried, survived, hung = Counter(of.values()), Counter[str](), Counter[str]()
    typed = refused(made) & of.keys()
    files = defaultdict[str, dict[str, float]](dict)
    for test in _collected:
        files[_file(test)][test] = WITHOUT
    with ProcessPoolExecutor(mp_context=FORK) as pool:
        for each in [pool.submit(outcome, "stats", tests) for tests in files.values()]:
            each.result()
        steps, seconds = defaultdict[str, float](float), dict[str, float]()
        for test, when, passed, took in map(json.loads, TIMES.read_text().splitlines()):
            steps[test] += took if passed else MOST  # it fails without a mutant, or is skipped
            if when == "teardown":
                seconds[test] = steps[test]
        callers = defaultdict[str, set[str]](set)
        for function, _, caller in (line.partition(" ") for line in HITS.read_text().splitlines()):
            callers[function] |= seconds.keys() & (files.get(caller) or {caller})
        running = {}
        for mutant in (mutant for mutant in mutants if mutant not in typed):
            tests = quickest(seconds, callers[mutant.partition("__mutmut_")[0]])
            running[pool.submit(outcome, mutant, tests)] = mutant
        for done, future in enumerate(as_completed(running), 1):
            mutant = running[future]
            hung[of[mutant]] += future.result() == HANGS
            if future.result() == SURVIVED:
                survived[of[mutant]] += 1
                file, code = made[mutant]
                print(f"\n{get_diff_for_mutant(mutant, code, file)}", flush=True)
            print(f"\r{done:,} of {len(running):,}", end="", file=sys.stderr)
    print()
    by_type = Counter(of[mutant] for mutant in typed)
    for folder, number in tried.items():
        hangs = f"{hung[folder]:,} since a test hangs"
        print(f"{folder}: {1 - survived[folder] / number:.1%} of {number:,}, {by_type[folder]:,} by types, {hangs}")
    print(f"Mutation score: {100 * (1 - survived.total() / tried.total()):.1f} %")


def main() -> None:
    """Run the mutants of ``FILES``, or ``SAMPLE`` of each folder by ``SEED``."""
    patterns = (os.environ.get("FILES") or FILES).split()
    made = make([path.relative_to(ROOT) for pattern in patterns for path in sorted(ROOT.glob(pattern))])
    mutants = random.Random(os.environ.get("SEED")).sample([*made], len(made))  # noqa: S311  # no secret
    if sample := os.environ.get("SAMPLE"):
        folders = defaultdict[Path, list[str]](list)
        for mutant in mutants:
            folders[made[mutant][0].parent].append(mutant)
        mutants = [mutant for folder in folders.values() for mutant in folder[: int(sample)]]
    sys.path[:0] = ["src", "."]
    os.environ["PYTHONPATH"] = os.pathsep.join((str(Path("src").resolve()), os.environ["PYTHONPATH"]))
    os.environ["MUTANT_UNDER_TEST"] = ""
    paths = [f"tests/test_{name}.py" for name in (os.environ.get("TESTS") or TESTS).split()]
    sys.exit(pytest.main([*QUIET, *NOT, *paths], [Forks(lambda: run(made, mutants))]))


if __name__ == "__main__":
    main()
