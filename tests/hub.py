"""As much of the Hugging Face Hub as its library asks of it (huggingface_hub 2.4.0) to fetch one model."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Has the files in ``folder`` as ``tiny/model``, whose every revision is one commit."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        """For ``HF_ENDPOINT``."""
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    """One request."""

    server: Hub

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.asked.append(path)
        match path.strip("/").split("/", 5):
            case ["api", "models", "tiny", "model", "revision", _]:
                self.answer(json.dumps({"id": "tiny/model", "sha": COMMIT, "siblings": []}).encode())
            case ["api", "models", "tiny", "model", "tree", _]:
                files = [
                    {"type": "file", "path": name, "size": len(data), "oid": oid(data)}
                    for name, data in self.server.files.items()
                ]
                self.answer(json.dumps(files).encode())
            case ["tiny", "model", "resolve", _, *name] if (data := self.server.files.get("/".join(name))) is not None:
                self.answer(data)
            case _:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

    do_HEAD = do_GET  # noqa: N815  # the base class's way to say it

    def answer(self, data: bytes) -> None:
        self.send_response(200)
        for name, value in (("ETag", f'"{oid(data)}"'), ("X-Repo-Commit", COMMIT), ("Content-Length", str(len(data)))):
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def oid(data: bytes) -> str:
    """Name a file's content as git does."""
    return hashlib.sha1(b"blob %d\0%s" % (len(data), data)).hexdigest()


@contextmanager
def served(folder: Path) -> Iterator[Hub]:
    """Serve the model in ``folder``."""
    with Hub(folder) as hub:
        Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()
