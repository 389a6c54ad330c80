"""What a user meets in the first hour: the README's task, settings in ``.env``, an installation that is cut off.

And what ``docs/testing.md`` offers for an editor and for git.
"""

import base64
import hashlib
import io
import json
import re
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import IO, Any

import pytest

from tests.conftest import ROOT, Bake, make, required

PAGE = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
UV = str(Path(sys.executable).with_name("uv"))
ADAPTER = [UV, "run", "--quiet", "--no-project", "--with", "debugpy", "python", "-m", "debugpy.adapter"]
"""What VS Code starts to debug Python (Debug Adapter Protocol, on standard input and output)."""
PREK = [UV, "tool", "run", "--quiet", "prek"]

NATURAL = """
import base64
import io
import random
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import jmespath
from PIL import Image

from aggregating_worker.testing.caller import Serve


def name(job, unused=None):
    return jmespath.search("id", job) or str(random.random())


class Pictures(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/tomato.png" else 404)
        self.end_headers()
        if self.path == "/tomato.png":
            self.wfile.write(tomato())


def tomato():
    picture = io.BytesIO()
    Image.new("RGB", (640, 480), "tomato").save(picture, "PNG")
    return picture.getvalue()


def test_it_returns_the_thumbnail_itself(serve: Serve) -> None:
    with HTTPServer(("127.0.0.1", 0), Pictures) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        made, failed = serve().runsync([f"{address}/tomato.png", f"{address}/gone.png"], width=64)["output"]
        server.shutdown()
    file = made["result"]
    thumbnail = Image.open(io.BytesIO(base64.b64decode(file["data"])))
    assert (thumbnail.size, thumbnail.getpixel((5, 5)), file["content_type"]) == ((64, 48), (255, 99, 71), "image/png")
    assert failed["failure"] == {"type": "HTTPError", "message": "HTTP Error 404: Not Found"}
"""
"""A test of the README's task, and what people write: no types, no docstrings, a library without types."""


def depend(project: Path, package: str) -> None:
    """Name a package among the project's own, as its owner would."""
    text = (project / "pyproject.toml").read_text(encoding="utf-8")
    (project / "pyproject.toml").write_text(
        text.replace("dependencies = [\n", f'dependencies = [\n  "{package}",\n', 1)
    )


def test_the_task_in_the_readme_does_what_it_says_and_lint_takes_what_people_write(bake: Bake, venv: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [task] = re.findall(r"After, thumbnails.*?```python\n(.*?)```", readme, re.DOTALL)
    project = bake()
    (project / "task.py").write_text(task, encoding="utf-8")
    (project / "tests" / "test_task.py").write_text(NATURAL.lstrip(), encoding="utf-8")
    depend(project, "pillow>=11")
    make(project, "lock", "lint", "test", "ARGS=tests/test_task.py", venv)


def test_the_settings_in_env_are_read_by_what_runs_the_worker_and_by_no_test(bake: Bake, venv: str) -> None:
    project = bake()
    (project / ".env").write_text("ITEM_TIMEOUT=soon\n", encoding="utf-8")
    with pytest.raises(AssertionError):
        make(project, "run", venv)
    make(project, "test", "ARGS=tests/test_task.py", venv)


def test_an_installation_that_was_interrupted_begins_anew(bake: Bake) -> None:
    project = bake()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", project / ".venv"], check=True)
    make(project, "run")


def test_a_package_that_only_the_tests_have_is_missed_by_the_tests(
    bake: Bake, capfd: pytest.CaptureFixture[str], venv: str
) -> None:
    """The image would lack it: ``stamina`` is here for the client."""
    project = bake()
    task = (project / "task.py").read_text(encoding="utf-8")
    (project / "task.py").write_text(task.replace("import re\n", "import re\nimport stamina\n"), encoding="utf-8")
    with pytest.raises(AssertionError):
        make(project, "test", "ARGS=-k image_lacks", venv)
    said = capfd.readouterr().out
    assert "No module named 'stamina': add it to pyproject.toml, then make lock." in said
    assert "Traceback" not in said


def test_a_test_input_that_the_hub_does_not_have_is_noticed_and_written_by_a_command(
    bake: Bake, capfd: pytest.CaptureFixture[str], venv: str
) -> None:
    project = bake()
    (project / "test_input.json").write_text('{"input": {"items": ["Fine."]}}', encoding="utf-8")
    with pytest.raises(AssertionError):
        make(project, "test", "ARGS=-k hub_tests", venv)
    assert ".runpod/tests.json has another job than test_input.json: make hub writes it." in capfd.readouterr().out
    make(project, "hub", venv)
    make(project, "test", "ARGS=-k hub_tests", venv)


def test_a_package_from_a_repository_is_refused_with_what_to_do(
    bake: Bake, capfd: pytest.CaptureFixture[str], venv: str
) -> None:
    project = bake()
    depend(project, "shout @ git+https://example.org/shout")
    with pytest.raises(AssertionError):
        make(project, "lock", venv)
    assert "put its wheel into vendor/" in capfd.readouterr().out


def wheel(name: str) -> bytes:
    """Return a wheel with nothing in it, version 1.0."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return content.getvalue()


def test_packages_of_a_repository_and_of_a_private_index_are_locked_by_their_hashes_alone(
    bake: Bake, venv: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, ours = wheel("mine"), wheel("ours")

    class Index(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            pages = {
                "/simple/ours/": b'<a href="/ours-1.0-py3-none-any.whl">it</a>',
                "/ours-1.0-py3-none-any.whl": ours,
            }
            known = self.headers["Authorization"] == f"Basic {base64.b64encode(b'me:token').decode()}"
            self.send_response((200 if self.path in pages else 404) if known else 401)
            self.send_header("Content-Type", "text/html" if self.path.startswith("/simple") else "application/zip")
            self.end_headers()
            self.wfile.write(pages.get(self.path, b"") if known else b"")

    project = bake()
    (project / "vendor" / "mine-1.0-py3-none-any.whl").write_bytes(mine)
    depend(project, "mine==1.0")
    depend(project, "ours")
    with HTTPServer(("127.0.0.1", 0), Index) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("UV_INDEX", f"ours=http://127.0.0.1:{server.server_port}/simple")
        monkeypatch.setenv("UV_INDEX_OURS_USERNAME", "me")
        monkeypatch.setenv("UV_INDEX_OURS_PASSWORD", "token")
        make(project, "lock", venv)
        server.shutdown()
    locked = (project / "requirements.txt").read_text(encoding="utf-8")
    for name, content in (("mine", mine), ("ours", ours)):
        assert f"\n{name}==1.0 \\\n    --hash=sha256:{hashlib.sha256(content).hexdigest()}\n" in locked
    assert "127.0.0.1" not in locked


def test_uv_add_is_answered_by_a_sentence(bake: Bake) -> None:
    project = bake()
    line = [str(Path(sys.executable).with_name("uv")), "add", "pillow"]
    refused = subprocess.run(line, cwd=project, capture_output=True, text=True)
    assert refused.returncode
    assert "unmanaged" in refused.stderr
    assert not (project / "uv.lock").exists()


def block(language: str) -> str:
    """Return the one block of the page in a language."""
    [text] = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return str(text)


def check_installs(*command: str) -> None:
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if finished.returncode:
        required(f"{command[-2]} is not tested, for it cannot be installed: {finished.stderr[-500:]}")


@pytest.fixture
def installed(bake: Bake, venv: str) -> Path:
    """A project with its own ``.venv``."""
    project, environment = bake(), Path(venv.removeprefix("VENV="))
    make(project, f"{environment}/bin/.ready", venv)
    (project / ".venv").symlink_to(environment)
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


def test_a_breakpoint_in_the_task_stops_the_local_test_in_vs_code(installed: Path) -> None:
    check_installs(*ADAPTER, "--help")
    project = installed
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


def test_no_commit_goes_past_lint_once_the_hook_is_installed(installed: Path) -> None:
    check_installs(*PREK, "--version")
    project = installed
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
