"""``aggregating-worker hub``: have the Runpod Hub test the job in ``test_input.json``."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

TESTS = Path(".runpod", "tests.json")
"""What the Hub runs before it lists a release (docs, hub/publishing-guide)."""


def main(argv: list[str]) -> None:
    """Write the input of ``test_input.json`` into ``.runpod/tests.json``; the rest of that file stays as it is."""
    what = "Write the job in test_input.json into .runpod/tests.json, for the Hub to test."
    argparse.ArgumentParser(prog="aggregating-worker hub", description=what).parse_args(argv[1:])
    job, tests = _read(Path("test_input.json")), _read(TESTS)
    try:
        first = tests["tests"][0]
        tests["tests"] = [{**first, "input": job["input"]}]
    except (KeyError, IndexError, TypeError):
        sys.exit(f'test_input.json should have an "input", and {TESTS} "tests": see Runpod\'s publishing guide.')
    TESTS.write_text(json.dumps(tests, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{TESTS} tests the job in test_input.json.")


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        sys.exit(f"{file} cannot be read: {error.strerror}.")
    except ValueError as error:
        sys.exit(f"{file} is not JSON: {error}.")
