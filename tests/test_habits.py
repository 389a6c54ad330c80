"""What ``docs/testing.md`` offers for an editor and for git does what it says."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest

from tests.conftest import ROOT, Bake, make, required

PAGE = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
UV = str(Path(sys.executable).with_name("uv"))
ADAPTER = [UV, "run", "--quiet", "--no-project", "--with", "debugpy", "python", "-m", "debugpy.adapter"]
"""What VS Code starts to debug Python (Debug Adapter Protocol, on standard input and output)."""
PREK = [UV, "tool", "run", "--quiet", "prek"]


def block(language: str) -> str:
    """Return the one block of the page in a language."""
    [text] = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return str(text)


def check_installs(*command: str) -> None:
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if finished.returncode:
        required(f"{command[-2]} is not tested, for it cannot be installed: {finished.stderr[-500:]}")


@pytest.fixture(scope="module")
def project(bake: Bake) -> Path:
    project = bake()
    make(project, "lint")
    return project


class Debugger:
    """The side of the editor: it sends requests, and reads until what it waits for comes."""

    def __init__(self, adapter: "subprocess.Popen[bytes]") -> None:
        assert adapter.stdin
        assert adapter.stdout
        self._to: IO[bytes] = adapter.stdin
        self._from: IO[bytes] = adapter.stdout
        self._sent = 0

    def send(self, command: str, **arguments: Any) -> None:
        self._sent += 1
        body = json.dumps({"seq": self._sent, "type": "request", "command": command, "arguments": arguments}).encode()
        self._to.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        self._to.flush()

    def wait_for(self, kind: str, name: str) -> dict[str, Any]:
        """Return the body of the next event or response of that name."""
        while True:
            length = int(self._from.readline().removeprefix(b"Content-Length: "))
            self._from.readline()
            message = json.loads(self._from.read(length))
            # A process of its own would wait for an editor to come to it, too.
            assert message.get("success", True) and message.get("event") not in ("terminated", "debugpyAttach"), message
            if message["type"] == kind and name in (message.get("event"), message.get("command")):
                body: dict[str, Any] = message.get("body", {})
                return body


def test_a_breakpoint_in_the_task_stops_the_local_test_in_vs_code(project: Path) -> None:
    check_installs(*ADAPTER, "--help")
    [configuration] = json.loads(block("json").replace("${workspaceFolder}", str(project)))["configurations"]
    task = project / "task.py"
    lines = task.read_text(encoding="utf-8").splitlines()
    [line] = (number for number, text in enumerate(lines, 1) if "polarity_scores(text)" in text)
    with subprocess.Popen(ADAPTER, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as adapter:
        debugger = Debugger(adapter)
        debugger.send("initialize", adapterID="debugpy")
        debugger.wait_for("response", "initialize")
        debugger.send("launch", **configuration)
        debugger.wait_for("event", "initialized")
        debugger.send("setBreakpoints", source={"path": str(task)}, breakpoints=[{"line": line}])
        debugger.send("configurationDone")
        stopped = debugger.wait_for("event", "stopped")
        debugger.send("stackTrace", threadId=stopped["threadId"], levels=1)
        [frame] = debugger.wait_for("response", "stackTrace")["stackFrames"]
        debugger.send("evaluate", expression="text", frameId=frame["id"])
        value = debugger.wait_for("response", "evaluate")["result"]
        debugger.send("disconnect", terminateDebuggee=True)
    assert (frame["name"], frame["line"], value) == ("sentiment", line, "'I love this product!'")


def test_no_commit_goes_past_lint_once_the_hook_is_installed(project: Path) -> None:
    check_installs(*PREK, "--version")
    (project / ".pre-commit-config.yaml").write_text(block("yaml"), encoding="utf-8")
    git = ["git", "-c", "user.name=Owner", "-c", "user.email=owner@example.org"]
    for command in ([*git, "init", "--quiet"], [*PREK, "install"], [*git, "add", "."]):
        subprocess.run(command, cwd=project, check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "Begin"], cwd=project, check=True)
    with (project / "task.py").open("a", encoding="utf-8") as task:
        task.write("\nimport never_used\n")
    refused = subprocess.run(
        [*git, "commit", "--all", "--message", "More"], cwd=project, capture_output=True, text=True
    )
    assert refused.returncode
    assert "never_used" in refused.stdout + refused.stderr
