"""What the SDK makes of the documented handlers, and of this worker, as the table in the README.

``make table`` runs it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import httpx2

import readme
from aggregating_worker.local import LocalEndpoint

HERE = Path(__file__).parent
TEMPLATE = HERE.parent / "{{cookiecutter.project_slug}}"
TASK = """
from pydantic import BaseModel

class Input(BaseModel):
    items: list[str]

def load() -> None:
    pass

def process(item: str, job: Input) -> str:
    if item == "raise":
        raise ValueError("no")
    return item
"""

PATTERNS = {
    "sync_generator": "generator function",
    "async_generator": "async generator function",
    "returned_generator": "plain function that returns a generator",
    "wrapper": "wrapper: a list if the id is `local_test`, else the generator",
    "item_error": 'per item `yield {"success": False, "error": …}`',
}


def local(folder: Path, file: str, items: list[str]) -> str:
    """Run the local test and say what it printed as the job's result."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RUNPOD_")}
    job = json.dumps({"input": {"items": items}})
    finished = subprocess.run(
        [sys.executable, file, "--test_input", job], cwd=folder, env=bare, capture_output=True, text=True, timeout=60
    )
    [printed] = re.findall(r"Job result: \{'output': (.*)\}", finished.stdout) or [""]
    if found := re.match(r"<(async_)?generator object", printed):
        return f"prints `{found.group()}>`, exit {finished.returncode}"
    return f"the list, exit {finished.returncode}" if printed.startswith("[") else f"exit {finished.returncode}"


def production(folder: Path, file: str, items: list[str]) -> str:
    """Run the job on a local endpoint and say what its caller gets."""
    job = {"input": {"items": items}, "policy": {"executionTimeout": 5_000}}
    with tempfile.TemporaryFile() as log, LocalEndpoint([sys.executable, "-u", file], cwd=folder, log=log) as endpoint:
        answer = httpx2.post(f"{endpoint.url}/runsync", json=job, headers={"Authorization": "Bearer x"}, timeout=60)
    state = answer.json()
    match state["status"]:
        case "TIMED_OUT":
            return "**never answered**"
        case "FAILED":
            return f"**fails: {len(state.get('output', []))} of {len(items)} results**"
    failures = sum(isinstance(chunk, dict) and "failure" in chunk for chunk in state["output"])
    return f"{len(state['output']) - failures} of {len(items)} results" + (f", {failures} failure" if failures else "")


def table() -> str:
    """Run every pattern both ways, and the worker beside it, and return the table in Markdown."""
    rows = [
        f"| documented pattern (SDK {version('runpod')}) | `python handler.py` | production | this worker: both |",
        "|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as name:
        ours = Path(name)
        shutil.copy(TEMPLATE / "handler.py", ours)
        (ours / "task.py").write_text(TASK, encoding="utf-8")
        for pattern, words in PATTERNS.items():
            print(f"  {words}", file=sys.stderr)
            items = ["a", "raise", "b"] if pattern == "item_error" else ["a", "b", "c"]
            theirs = [run(HERE / "handlers", f"{pattern}.py", items) for run in (local, production)]
            mine = [run(ours, "handler.py", items) for run in (local, production)]
            rows.append(f"| {words} | {theirs[0]} | {theirs[1]} | {mine[0]}; {mine[1]} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Write the table into the README; with ``--check``, exit 1 if that would change it."""
    text = table()
    if "--check" not in sys.argv:
        readme.write("table", text)
    elif readme.differs("table", text):
        sys.exit("The table in README.md is out of date: run make table.")


if __name__ == "__main__":
    main()
