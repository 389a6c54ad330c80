"""Who reads a worker's log, and what it looks like to them."""

import json
import os
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runpod import RunPodLogger

from aggregating_worker.local import LocalEndpoint
from aggregating_worker.log import for_people
from aggregating_worker.sentence import printable
from tests.conftest import Caller, MakeWorker

FAILING = """
from pydantic import BaseModel


class Input(BaseModel):
    items: list[str]


def load() -> None:
    pass


def process(item: str, job: Input) -> None:
    raise ValueError(item)
"""


@given(message=st.text(), level=st.sampled_from(["ERROR", "WARN", "INFO"]), job_id=st.none() | st.text(min_size=1))
def test_a_line_of_an_endpoint_is_shown_as_the_sdk_prints_it_in_the_local_test(
    message: str, level: str, job_id: str | None
) -> None:
    shown = json.dumps({"requestId": job_id, "message": message, "level": level})
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr(
            "runpod.serverless.modules.rp_logger.print", lambda text, flush: printed.append(text), raising=False
        )
        patch.delenv("RUNPOD_ENDPOINT_ID", raising=False)
        RunPodLogger().log(message, level, job_id)
    assert for_people(shown) == printable(printed[0])


@pytest.mark.parametrize(
    "text", ["", "Traceback", "3", "{}", '{"requestId": 3}', "[" * 100_000, '{"message": "x", "level": "INFO"}\n\n']
)
def test_what_is_no_line_of_the_sdk_is_shown_as_it_is(text: str) -> None:
    assert for_people(text) == text


@pytest.mark.parametrize(
    ("task", "said"), [(FAILING, "{job_id} | Item 0 failed"), ("1 / 0", "task.py cannot be imported")]
)
def test_on_a_terminal_a_worker_of_the_local_endpoint_shows_a_traceback_in_lines(
    make_worker: MakeWorker, task: str, said: str
) -> None:
    folder = make_worker("hostile")
    (folder / "task.py").write_text(task)
    screen, terminal = os.openpty()
    shown = bytearray()

    def read() -> None:
        try:
            while some := os.read(screen, 10_000):  # a screen that nobody reads fills up
                shown.extend(some)
        except OSError:  # Linux: every program that had the terminal has ended
            pass

    reader = threading.Thread(target=read)
    reader.start()
    with (
        os.fdopen(terminal, "wb") as log,
        LocalEndpoint(cwd=folder, log=log) as endpoint,
        Caller(endpoint, folder / "unused.log") as caller,
    ):
        job_id = caller.run(["no"])
        expected = f"ERROR  | {said.format(job_id=job_id)}\r\nTraceback (most recent call last):\r\n".encode()
        deadline = time.monotonic() + 30
        while expected not in shown:
            assert time.monotonic() < deadline, shown.decode()
            time.sleep(0.02)
    reader.join(30)
    os.close(screen)
