"""In place of ComfyUI's ``main.py``: a server with its routes and answers, whose pictures are bytes."""

import json
import os
import sys
from email import message_from_bytes
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

CHECKPOINTS = ["flux1-dev-fp8.safetensors"]

pictures: dict[tuple[str, str], bytes] = {}
"""By type (``input``, ``output`` or ``temp``) and file name."""
history: dict[str, dict[str, Any]] = {}


def refused(workflow: dict[str, Any]) -> dict[str, Any] | None:
    """Return the answer to a workflow with a model that is not there."""
    faults = {}
    for node_id, node in workflow.items():
        name = node["inputs"].get("ckpt_name", CHECKPOINTS[0])
        if name not in CHECKPOINTS:
            fault = {
                "type": "value_not_in_list",
                "message": "Value not in list",
                "details": f"ckpt_name: '{name}' not in {CHECKPOINTS}",
                "extra_info": {},
            }
            faults[node_id] = {"errors": [fault], "dependent_outputs": ["9"], "class_type": node["class_type"]}
    error = {
        "type": "prompt_outputs_failed_validation",
        "message": "Prompt outputs failed validation",
        "details": "",
        "extra_info": {},
    }
    return {"error": error, "node_errors": faults} if faults else None


def run(workflow: dict[str, Any], prompt_id: str) -> None:
    outputs: dict[str, Any] = {}
    picture = b"\x89PNG\r\n\x1a\n"
    for node_id, node in workflow.items():
        inputs = node["inputs"]
        match node["class_type"]:
            case "LoadImage":
                picture = pictures["input", inputs["image"]]
            case "EmptyImage":
                picture += bytes(inputs["bytes"])
            case "SaveImage" | "PreviewImage" as kind:
                file = {
                    "filename": f"{inputs['filename_prefix']}_00001_.png",
                    "subfolder": "",
                    "type": "output" if kind == "SaveImage" else "temp",
                }
                pictures[file["type"], file["filename"]] = picture
                outputs[node_id] = {"images": [file]}
            case "OutOfMemory":
                raise RuntimeError(node_id)
            case "Segfault":
                os._exit(139)
    status = {"status_str": "success", "completed": True, "messages": []}
    history[prompt_id] = {"prompt": [], "outputs": outputs, "status": status, "meta": {}}


def fail(prompt_id: str, node_id: str) -> None:
    error = {
        "prompt_id": prompt_id,
        "node_id": node_id,
        "node_type": "OutOfMemory",
        "exception_message": "Allocation on device",
        "exception_type": "torch.OutOfMemoryError",
        "traceback": [],
    }
    status = {"status_str": "error", "completed": False, "messages": [["execution_error", error]]}
    history[prompt_id] = {"prompt": [], "outputs": {}, "status": status, "meta": {}}


class Handler(BaseHTTPRequestHandler):
    def answer(self, body: Any, status: int = 200) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        match url.path.split("/")[1:]:
            case ["history", prompt_id]:
                self.answer({prompt_id: history[prompt_id]} if prompt_id in history else {})
            case ["view"]:
                found = pictures.get((query["type"], query["filename"]))
                self.answer(found or b"", 404 if found is None else 200)
            case ["object_info"]:
                self.answer({"CheckpointLoaderSimple": {"input": {"required": {"ckpt_name": [CHECKPOINTS, {}]}}}})
            case _:
                self.answer(b"<html>")

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/upload/image":
            head = f"Content-Type: {self.headers['Content-Type']}\n\n".encode()
            for part in message_from_bytes(head + content, policy=HTTP).iter_parts():
                if name := part.get_filename():
                    pictures["input", name] = part.get_content()
                    self.answer({"name": name, "subfolder": "", "type": "input"})
            return
        workflow = json.loads(content)["prompt"]
        if refusal := refused(workflow):
            self.answer(refusal, 400)
            return
        prompt_id = f"prompt-{len(history)}"
        self.answer({"prompt_id": prompt_id, "number": len(history), "node_errors": {}})
        try:
            run(workflow, prompt_id)
        except RuntimeError as failed:
            fail(prompt_id, str(failed))

    def log_message(self, *_: Any) -> None:
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
