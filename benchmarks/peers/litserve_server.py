"""The call as a LitServe API: ``litserve_server.py --port N``."""

import os
import sys
import time
from typing import Any

import litserve

SECONDS = float(os.environ["SECONDS_A_CALL"])


class Call(litserve.LitAPI):
    """A model whose call takes the same time for any number of items."""

    def setup(self, device: str) -> None:
        del device

    def decode_request(self, request: dict[str, Any]) -> str:
        return str(request["text"])

    def predict(self, x: list[str]) -> list[dict[str, Any]]:
        began = time.monotonic()
        time.sleep(SECONDS)
        return [{"began": began, "text": item} for item in x]

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    api = Call(max_batch_size=32, batch_timeout=0.005, api_path="/inference")
    litserve.LitServer(api, accelerator="cpu").run(port=int(sys.argv[2]), generate_client_file=False, log_level="error")
