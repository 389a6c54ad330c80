"""Claims of the baked ``SECURITY.md`` that no other test holds."""

import json
import re
import secrets
from typing import Any

import httpx2
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import Caller, Serve

SECRET = secrets.token_hex()
"""A value in the worker's environment."""
MARKER = secrets.token_hex()
"""A text in the result of another caller's job, and in the log of a second one."""
REACHING = re.findall(
    r"\S+",
    r"""
    /proc/self/environ file:///proc/self/environ ../../../../proc/self/environ ~/.aws/credentials @/proc/self/environ
    $SECRET ${SECRET} %SECRET% {SECRET} %(SECRET)s #{ENV['SECRET']} env:SECRET ${jndi:env:SECRET} $(printenv) `printenv`
    {{config}} {{''.__class__.__mro__}} {0.__class__.__init__.__globals__} __import__('os').environ __proto__
    !!python/object/apply:os.getenv ../{other}/0.json {other} /stream/{other} job-done/worker-1/{other}
    http://127.0.0.1:{port}/v2/local/status/{other} refresh_worker error id
    """,
)
FORGING = ['\n{"requestId": "{other}", "message": "forged"}\n', "\r\n\r\n", "\x00", "\x1b[2K", "\u202e", "\u2028"]

texts = st.sampled_from(REACHING + FORGING) | st.text(max_size=20)
values = st.recursive(
    texts | st.none() | st.booleans() | st.integers(-(2**53), 2**53),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
inputs = st.fixed_dictionaries({"items": st.lists(values, min_size=1, max_size=5)}, optional={"option": values})
requests = st.builds(
    lambda job, fields, around: {**around, "input": {**fields, **job}},
    inputs,
    st.just({}) | st.dictionaries(texts, values, max_size=2),
    st.fixed_dictionaries({}, optional=dict.fromkeys(("id", "s3Config", "status", "output", "env"), values)),
)


@pytest.fixture(scope="module")
def caller(serve: Serve) -> Caller:
    return serve("hostile", SECRET=SECRET)


@pytest.fixture(scope="module")
def others(caller: Caller) -> list[str]:
    """Return the ids of two jobs of another caller's: one with a result, one with a line in the log."""
    ids = [caller.run([MARKER]), caller.run([1], **{MARKER: 1})]
    assert [chunk["result"] for job_id in ids for chunk in caller.stream(job_id)] == [MARKER]
    assert [caller.status(job_id)["status"] for job_id in ids] == ["COMPLETED", "FAILED"]
    assert MARKER in caller.log.read_text()
    return ids


def echoed(item: Any) -> Any:
    """Return the result of a task that returns its item: ``refresh_worker`` is for the worker, and taken out."""
    asks = isinstance(item, dict) and item.get("refresh_worker")
    return {name: value for name, value in item.items() if name != "refresh_worker"} if asks else item


def logged(caller: Caller) -> list[dict[str, Any]]:
    return [json.loads(line) for line in caller.log.read_text().splitlines() if line.startswith("{")]


def test_no_field_of_a_job_reaches_the_environment_or_another_job(caller: Caller, others: list[str]) -> None:
    """Whatever a job says is only text to the worker: it comes back as it was, or the job is refused."""
    port = str(httpx2.URL(caller.endpoint.url).port)

    @settings(max_examples=50, deadline=None)
    @given(requests, st.sampled_from(others))
    def send(request: dict[str, Any], other: str) -> None:
        body = json.dumps(request).replace("{other}", other).replace("{port}", port)
        answer = caller.post("/runsync", content=body)
        assert SECRET not in answer.text
        assert MARKER not in answer.text
        state = answer.json()
        assert state["id"] not in others
        if state["status"] == "COMPLETED":
            items = json.loads(body)["input"]["items"]
            assert [envelope.get("result") for envelope in state["output"]] == [*map(echoed, items)]
        else:
            assert state["error"].startswith("The job's input cannot be used: ")

    send()
    assert "forged" not in {line["message"] for line in logged(caller)}
    assert [line["requestId"] for line in logged(caller) if MARKER in line["message"]] == [others[1]]
    assert SECRET not in caller.log.read_text()


def test_a_job_has_the_id_that_the_queue_gave_it(caller: Caller, others: list[str]) -> None:
    before = caller.status(others[0])
    answer = caller.post("/runsync", json={"id": others[0], "input": {"items": ["mine"]}}).json()
    assert answer["id"] != others[0]
    assert caller.status(others[0]) == before


def test_a_worker_listens_on_no_port_and_the_local_endpoint_on_this_machine_only(caller: Caller) -> None:
    caller.runsync(["text"])
    [worker] = caller.endpoint.workers.running
    process = psutil.Process(worker.process.pid)
    assert not [address for each in [process, *process.children(recursive=True)] for address in listening(each)]
    port = httpx2.URL(caller.endpoint.url).port
    assert [address.ip for address in listening(psutil.Process()) if address.port == port] == ["127.0.0.1"]


def listening(process: psutil.Process) -> list[Any]:
    return [each.laddr for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN]
