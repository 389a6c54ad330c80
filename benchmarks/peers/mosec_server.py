"""The call as a mosec worker: ``mosec_server.py --port N``."""

import os
import time
from typing import Any

from mosec import Server, Worker

SECONDS = float(os.environ["SECONDS_A_CALL"])


class Call(Worker):
    """A model whose call takes the same time for any number of items."""

    def forward(self, data: list[Any]) -> list[Any]:
        began = time.monotonic()
        time.sleep(SECONDS)
        return [{"began": began, "text": item["text"]} for item in data]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Call, num=1, max_batch_size=32, max_wait_time=5)
    server.run()
