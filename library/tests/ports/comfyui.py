"""worker-comfyui, ported: a workflow is run by a ComfyUI of the worker's own, and its pictures are returned.

The original: https://github.com/runpod-workers/worker-comfyui, ``handler.py`` of March 2026.
"""

import base64
import binascii
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import requests
from pydantic import BaseModel, ConfigDict, Field, model_validator
from runpod.serverless.utils.rp_upload import upload_image

from aggregating_worker import Context, ItemFailed

ITEM_CONCURRENCY = 1  # two workflows at once would take one another's input files, which have the callers' names

COMFYUI = os.environ.get("COMFYUI", "/comfyui/main.py")
REFRESH_WORKER = os.environ.get("REFRESH_WORKER", "false").lower() == "true"


class Picture(BaseModel):
    """A file for the workflow; ``image`` is base64, with or without the beginning of a data URI."""

    name: str
    image: str


class Workflow(BaseModel):
    """One request of the old worker, which took no notice of other fields: so they are no fault here, either."""

    workflow: dict[str, Any]
    images: list[Picture] | None = None
    comfy_org_api_key: str | None = Field(None, repr=False)

    @model_validator(mode="before")
    @classmethod
    def check(cls, request: Any) -> Any:
        """Refuse what ``validate_input`` did, in its words."""
        if not isinstance(request, dict):
            return request  # and pydantic has a word for it
        if request.get("workflow") is None:
            raise ValueError("Missing 'workflow' parameter")
        images = request.get("images") or []
        if not isinstance(images, list) or not all("name" in image and "image" in image for image in images):
            raise ValueError("'images' must be a list of objects with 'name' and 'image' keys")
        return request


class Input(BaseModel):
    """Several of them."""

    model_config = ConfigDict(extra="forbid")
    items: list[Workflow]


def single(request: dict[str, Any]) -> dict[str, Any] | None:
    """Take the request of an older caller, too: the fields of one workflow."""
    return None if "items" in request else {"items": [request]}


class Server:
    """ComfyUI, in a process of its own, on a port that was free."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen([sys.executable, "-u", COMFYUI, "--disable-auto-launch", "--port", str(port)])
        while not self.answers():
            if not self.lives:
                raise RuntimeError(f"ComfyUI ended at its start, with status {self.process.returncode}")
            time.sleep(0.05)

    @property
    def lives(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def ends(self) -> bool:
        """Whether the process has ended, or is about to: its connections break a moment before."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        return not self.lives

    def answers(self) -> bool:
        """Whether it is ready."""
        try:
            return bool(requests.get(self.url, timeout=5).ok)
        except requests.RequestException:
            return False

    def get(self, path: str, **query: str) -> Any:
        """Return the answer to a GET. Raises ``requests.RequestException`` if there is none, or another status."""
        answer = requests.get(self.url + path, params=query, timeout=60)
        answer.raise_for_status()
        return answer


server: Server


def load() -> None:
    """Start ComfyUI: one for each process of the task. It ends with that process."""
    global server
    server = Server()


def process(item: Workflow, job: Input, context: Context) -> dict[str, Any]:
    """Return what the old handler did: the pictures, or ``{"error": …}``."""
    try:
        answer = run(item, context)
    except requests.RequestException as error:
        if server.ends():  # a new process for the task brings a new ComfyUI
            raise ItemFailed("ComfyUI has ended", restart=True) from error
        answer = {"error": f"HTTP communication error with ComfyUI: {error}"}
    return {**answer, "refresh_worker": True} if REFRESH_WORKER else answer


def run(item: Workflow, context: Context) -> dict[str, Any]:
    """Run a workflow to its end and return its pictures, or what went wrong."""
    faults = [fault for image in item.images or [] if (fault := upload(image))]
    if faults:
        return {"error": "Failed to upload one or more input images", "details": faults}
    queued = requests.post(f"{server.url}/prompt", json=prompt(item), timeout=30)
    if queued.status_code == 400:
        return {"error": refusal(queued.json())}
    queued.raise_for_status()
    prompt_id = queued.json()["prompt_id"]
    while prompt_id not in (history := server.get(f"/history/{prompt_id}").json()):
        time.sleep(0.1)
    done = history[prompt_id]
    errors = [said(data) for kind, data in done["status"]["messages"] if kind == "execution_error"]
    if not done["outputs"] and not errors:
        errors = [f"No outputs found in history for prompt {prompt_id}."]
    made = [file for output in done["outputs"].values() for file in output.get("images", []) if file["type"] != "temp"]
    images = [picture(file, context) for file in made]
    if errors and not images:
        return {"error": "Job processing failed", "details": errors}
    if not images:
        return {"status": "success_no_images", "images": []}
    return {"images": images, "errors": errors} if errors else {"images": images}


def prompt(item: Workflow) -> dict[str, Any]:
    """Return what ComfyUI is asked; a caller's own key for its paid nodes goes before the worker's."""
    key = item.comfy_org_api_key or os.environ.get("COMFY_ORG_API_KEY")
    return {"prompt": item.workflow, "extra_data": {"api_key_comfy_org": key} if key else {}}


def upload(image: Picture) -> str | None:
    """Give ComfyUI a file, or return why that failed."""
    try:
        content = base64.b64decode(image.image.rpartition(",")[2])
    except binascii.Error as error:
        return f"Error decoding base64 for {image.name}: {error}"
    files = {"image": (image.name, content, "image/png")}
    answer = requests.post(f"{server.url}/upload/image", files=files, data={"overwrite": "true"}, timeout=30)
    answer.raise_for_status()
    return None


def picture(file: dict[str, str], context: Context) -> dict[str, str]:
    """Return a picture as the old worker did: as base64 text or, with a bucket, as a URL."""
    name = file["filename"]
    content = server.get("/view", filename=name, subfolder=file["subfolder"], type=file["type"]).content
    if not os.environ.get("BUCKET_ENDPOINT_URL"):
        return {"filename": name, "type": "base64", "data": base64.b64encode(content).decode()}
    path = context.folder / f"picture{Path(name).suffix}"
    path.write_bytes(content)
    return {"filename": name, "type": "s3_url", "data": upload_image(context.job_id, str(path))}


def said(data: dict[str, Any]) -> str:
    """Return the sentence about a node that failed."""
    node = f"Node Type: {data['node_type']}, Node ID: {data['node_id']}"
    return f"Workflow execution error: {node}, Message: {data['exception_message']}"


def refusal(answer: dict[str, Any]) -> str:
    """Return the text about a workflow that ComfyUI does not accept."""
    faults = [
        f"• Node {node_id} ({kind}): {fault}"
        for node_id, about in answer["node_errors"].items()
        for kind, fault in about.items()
    ]
    text = "\n".join(["Workflow validation failed:", *faults])
    if not any("not in list" in fault and "ckpt_name" in fault for fault in faults):
        return text
    nodes = server.get("/object_info").json()
    names = nodes["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0]
    return f"{text}\n\nAvailable checkpoint models: {', '.join(names)}"
