"""``python -m endpoint.demo``: one job through the production loop, seen from the caller's side."""

import json
import sys
import tempfile
import time
from typing import Any

import httpx

from endpoint.local.server import PROJECT, LocalEndpoint


def main() -> None:
    """Send ``test_input.json`` with /run, follow its stream, compare it with /status and /runsync."""
    job = json.loads((PROJECT / "test_input.json").read_text(encoding="utf-8"))
    with tempfile.NamedTemporaryFile(suffix=".log", delete=False) as log:
        print(f"Starting a local endpoint with one worker (its log: {log.name})")
        with (
            LocalEndpoint(log=log) as endpoint,
            httpx.Client(base_url=endpoint.url, headers={"Authorization": "Bearer local"}, timeout=120) as client,
        ):
            began = time.monotonic()
            submitted = _call(client, "POST", "/run", job)
            print(f"POST /run       {submitted}")
            streamed = _follow(client, submitted["id"], began)
            aggregated = _call(client, "GET", f"/status/{submitted['id']}")
            print(
                f"GET  /status    {aggregated['status']}, the aggregate:\n{json.dumps(aggregated['output'], indent=2)}"
            )
            synchronous = _call(client, "POST", "/runsync", job)
            print(f"POST /runsync   {synchronous['status']}, {len(synchronous['output'])} results")
    if not streamed == aggregated["output"] == synchronous["output"]:
        sys.exit("The stream, the aggregate and /runsync differ.")
    print("The stream, the aggregate and /runsync are the same list.")


def _follow(client: httpx.Client, job_id: str, began: float) -> list[Any]:
    chunks: list[Any] = []
    while True:
        state = _call(client, "GET", f"/stream/{job_id}")
        for chunk in state["stream"]:
            print(f"GET  /stream    {time.monotonic() - began:5.2f} s  {json.dumps(chunk['output'])}")
            chunks.append(chunk["output"])
        if state["status"] not in ("IN_QUEUE", "IN_PROGRESS") and not state["stream"]:
            return chunks


def _call(client: httpx.Client, method: str, path: str, body: Any = None) -> dict[str, Any]:
    answer: dict[str, Any] = client.request(method, path, json=body).raise_for_status().json()
    if "error" in answer:
        sys.exit(f"{path} failed: {answer['error']}")
    return answer


if __name__ == "__main__":
    main()
