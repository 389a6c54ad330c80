"""What ``SECURITY.md`` claims and no other test holds; every test that it names is there."""

import ast
import json
import re
import secrets
from typing import Any

import httpx
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import PROJECT, Caller, Serve

SECRET = secrets.token_hex()
"""In the worker's environment."""
MARKER = secrets.token_hex()
"""In the result of one job of another caller's, and in the log of a second one."""
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
    """Return what comes back of a task that returns its item: a result's wish for a new worker is the worker's."""
    asks = isinstance(item, dict) and item.get("refresh_worker")
    return {name: value for name, value in item.items() if name != "refresh_worker"} if asks else item


def logged(caller: Caller) -> list[dict[str, Any]]:
    return [json.loads(line) for line in caller.log.read_text().splitlines() if line.startswith("{")]


def test_no_field_of_a_job_reaches_the_environment_or_another_job(caller: Caller, others: list[str]) -> None:
    """What a job says is text to the worker: it comes back as it was, or the job is refused."""
    port = str(httpx.URL(caller.endpoint.url).port)

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
    port = httpx.URL(caller.endpoint.url).port
    assert [address.ip for address in listening(psutil.Process()) if address.port == port] == ["127.0.0.1"]


def listening(process: psutil.Process) -> list[Any]:
    return [each.laddr for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN]


def test_the_image_runs_as_a_user_with_a_number() -> None:
    """The engine can check a number, ``runAsNonRoot`` for one, without looking into the image."""
    last_stage = (PROJECT / "Dockerfile").read_text(encoding="utf-8").rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (.*)$", last_stage, re.MULTILINE) == ["1000:1000"]


def sent_to_the_builder(path: str) -> bool:
    """Whether ``.dockerignore`` lets ``path`` through, by Docker's rules.

    A rule holds for a path and all below it; ``*`` stays in one folder, ``**`` does not; the last rule that fits wins.
    https://docs.docker.com/build/concepts/context/#syntax
    """
    lines = (PROJECT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    above = ["/".join(path.split("/")[: depth + 1]) for depth in range(path.count("/") + 1)]
    sent = True
    for rule in [line.strip() for line in lines if line.strip() and not line.startswith("#")]:
        pattern = re.escape(rule.removeprefix("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if any(re.fullmatch(pattern, each) for each in above):
            sent = rule.startswith("!")
    return sent


OUTSIDE = {
    "secrets": ".env .env.local prod.env keys/.env cert.pem keys/deep/cert.pem server.key id_rsa keys/id_ed25519.pub",
    "credentials": "client_secret.json credentials.json .ssh/config .aws/credentials",
    "tests": "tests/test_task.py tests/tasks/parts.py test_model.py lib/test_model.py conftest.py",
    "notebooks and documents": "explore.ipynb notes/explore.ipynb docs/calling.md README.md SECURITY.md",
    "the other side of the queue": "endpoint/demo.py endpoint/local/server.py",
    "the project's own": "Dockerfile Makefile pyproject.toml requirements-dev.txt .github/workflows/ci.yml",
    "what tools leave": ".git/config .venv/lib/a.py venv/lib/a.py __pycache__/a.pyc lib/__pycache__/a.pyc",
}
INSIDE = {
    "the worker": "handler.py task.py test_input.json requirements.txt worker/job.py worker/calls/call.py",
    "code": "model.py lib/model.py environment.py keys.py docs.py",
    "data": "labels.txt data/labels.json data/README.md prompts/system.md weights.safetensors tests.json endpoints.csv",
}


@pytest.mark.parametrize("paths", OUTSIDE.values(), ids=OUTSIDE)
def test_secrets_tests_and_notebooks_stay_out_of_the_image(paths: str) -> None:
    assert [path for path in paths.split() if sent_to_the_builder(path)] == []


@pytest.mark.parametrize("paths", INSIDE.values(), ids=INSIDE)
def test_what_is_beside_the_task_gets_into_the_image(paths: str) -> None:
    assert [path for path in paths.split() if not sent_to_the_builder(path)] == []


def test_the_image_copies_what_is_sent_in_one_place_only() -> None:
    text = (PROJECT / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE) == [
        "requirements-run.txt /",
        "requirements.txt /",
        ". .",
    ]
    assert re.findall(r"^COPY --from=(.*)$", text, re.MULTILINE) == ["dependencies /image /", "code /image /"]


def test_every_test_that_is_named_exists() -> None:
    text = (PROJECT / "SECURITY.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    named = [re.findall(r"`(\w+\.py)::([\w:]+)`", row) for row in rows]
    assert rows
    assert all(named), "each claim names the test that holds it"
    for file, place in {each for names in named for each in names}:
        scope: list[ast.stmt] = ast.parse((PROJECT / "tests" / "machinery" / file).read_text(encoding="utf-8")).body
        for name in place.split("::"):
            [found] = [each for each in scope if getattr(each, "name", None) == name]
            scope = getattr(found, "body", [])
