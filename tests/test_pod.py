"""The commands of ``docs/pod.md``, with an SSH server of this machine in the place of a Pod."""

import getpass
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.conftest import ROOT, Bake, free_port, required, until

PAGE = (ROOT / "docs" / "pod.md").read_text(encoding="utf-8")
CONFIG, BRING, FORWARD, THERE, CALL = re.findall(r"^```\w*\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
INSTALLED = 300
"""Seconds: at its first start, ``make`` installs the project."""
OF_THIS_MACHINE = ("PIP_", "UV_", "SSL_", "REQUESTS_", "HTTP", "http")
"""What the names of the variables begin with that an installation on this machine may need."""


class Pod:
    """An SSH server of this user's on a free port, and a folder in the place of ``/workspace``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.here, self.there = folder, free_port(), free_port(), free_port()
        for key in ("host", "key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
        self.words = {
            "203.0.113.7": "127.0.0.1",
            "17445": str(self.port),
            "User root": f"User {getpass.getuser()}",
            "~/.ssh/id_ed25519": f"{folder}/key\nUserKnownHostsFile {folder}/known\nStrictHostKeyChecking accept-new",
            "/workspace": f"{folder}/workspace",
            "8000:localhost:8000": f"{self.here}:localhost:{self.there}",
            "ARGS=--reload": f"PYTHON={sys.executable} ARGS='--reload --port {self.there}'",
            ".venv/bin/aggregating-worker": f"{sys.executable} -m aggregating_worker",
            "--local": "--endpoint local",
        }
        (folder / "ssh_config").write_text(self.spelled(CONFIG))
        (folder / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
        (folder / "ssh").chmod(0o700)
        self.environment = {
            **os.environ,
            "PATH": f"{folder}:{os.environ['PATH']}",
            "RUNPOD_API_KEY": "of-this-machine",
            "RUNPOD_ENDPOINT_BASE_URL": f"http://localhost:{self.here}/v2",
        }

    @property
    def server_config(self) -> str:
        variables = {name: value for name, value in os.environ.items() if name.startswith(OF_THIS_MACHINE)}
        variables |= {"RUNPOD_POD_ID": "pod", "RUNPOD_API_KEY": "of-the-pod"}
        return "\n".join(
            (
                f"ListenAddress 127.0.0.1:{self.port}",
                f"HostKey {self.folder}/host",
                f"AuthorizedKeysFile {self.folder}/key.pub",
                *("StrictModes no", "UsePAM no", "PidFile none"),
                "SetEnv " + " ".join(f'"{name}={value}"' for name, value in variables.items()),
            )
        )

    def spelled(self, text: str) -> str:
        """Return what the page says, with this server, its key, its ports and its folder."""
        for word, here in self.words.items():
            assert word in PAGE
            text = text.replace(word, here)
        return text

    def run(self, command: str, project: Path) -> str:
        """Run a command of the page here, in the project's folder; return what it prints."""
        line = ["bash", "-euc", self.spelled(command)]
        return subprocess.run(
            line, cwd=project, env=self.environment, stdout=subprocess.PIPE, text=True, check=True, timeout=60
        ).stdout

    def status(self, **headers: str) -> int:
        """Ask for the page, as a browser here does; 0 if nothing answers."""
        try:
            return httpx2.get(f"http://localhost:{self.here}/", headers=headers, timeout=5).status_code
        except httpx2.HTTPError:
            return 0


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    server = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")  # it has to be called by its whole path
    if not (server and shutil.which("ssh")):
        required("The loop on a Pod is not tested: install OpenSSH, its client and its server.")
        return
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where the server has itself locked in; its service makes it
    made = Pod(tmp_path)
    (tmp_path / "sshd_config").write_text(made.server_config)
    with (
        (tmp_path / "sshd.log").open("wb") as log,
        subprocess.Popen([server, "-D", "-e", "-f", tmp_path / "sshd_config"], stderr=log) as running,
    ):
        yield made
        running.terminate()
    print((tmp_path / "sshd.log").read_text()[-2_000:])


@contextmanager
def terminal(pod: Pod) -> Iterator[int]:
    """Open a terminal in which the page's ``ssh`` runs; yield what types into it. Closing it ends what runs there."""
    keyboard, screen = pty.openpty()
    with (pod.folder / "terminal.log").open("wb") as log:
        line = ["bash", "-c", f"exec {pod.spelled(FORWARD)}"]
        with subprocess.Popen(
            line, env=pod.environment, stdin=screen, stdout=log, stderr=log, start_new_session=True
        ) as running:
            try:
                yield keyboard
            finally:
                os.close(keyboard)
                os.close(screen)
                running.terminate()
    print((pod.folder / "terminal.log").read_text(errors="replace")[-4_000:])


def test_the_worker_on_a_pod_answers_here_and_takes_what_is_edited_here(pod: Pod, bake: Bake) -> None:
    project = bake()
    items = len(json.loads((project / "test_input.json").read_text())["input"]["items"])
    pod.run(BRING, project)
    with terminal(pod) as keyboard:
        os.write(keyboard, pod.spelled(THERE).encode())
        until(lambda: pod.status() == 200, INSTALLED)
        envelopes = [json.loads(line) for line in pod.run(CALL, project).splitlines()]
        assert [envelope["success"] for envelope in envelopes] == [True] * items

        task = project / "task.py"
        task.write_text(task.read_text().replace("Sentiment(text=text,", "Sentiment(text='edited',"))
        pod.run(BRING, project)
        until(lambda: "edited" in pod.run(CALL, project))

        assert pod.status(Host="pod-8000.proxy.runpod.net") == 403
        os.write(keyboard, b"\x03")  # Ctrl-C
        until(lambda: pod.status() == 0)
