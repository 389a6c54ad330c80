"""``aggregating-worker deploy`` keeps to the API's contract, makes one endpoint per name, and never shows the key."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
import stamina
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregating_worker.client.waiting import why
from aggregating_worker.deploy import coming_up, rest
from aggregating_worker.deploy.arguments import read_arguments
from aggregating_worker.deploy.command import change, creation, main
from aggregating_worker.deploy.rest import DeployFailed, Endpoint
from tests.conftest import LIBRARY
from tests.rest_api import CREATE, KEY, UPDATE, Account, Fault, lost_half_way, problem

NAME = "docker.io/me/worker"
IMAGE = f"{NAME}:3f2a1b0c9d8e"
NEXT = "If the image is not in its registry yet, push it: make image push.\n"


@dataclass
class Said:
    """What the command left behind."""

    status: int
    out: str
    err: str

    @property
    def request(self) -> tuple[str, Any]:
        """The method and body that a dry run printed."""
        line, _, body = self.out.partition("\n")
        return line.split()[0], json.loads(body)


Deploy = Callable[..., Said]


@pytest.fixture(scope="module")
def api() -> Iterator[Account]:
    with Account() as account:
        yield account


@pytest.fixture
def account(api: Account) -> Account:
    """An account without endpoints, at which nothing has happened yet."""
    for memory in (api.endpoints, api.requests, api.faults, api.health):
        memory.clear()
    return api


@pytest.fixture
def deploy(
    account: Account, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Deploy]:
    """Run the command against ``account``, in a project of its own, without a pause before another try."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "my-worker"\n')
    (tmp_path / "Makefile").write_text(f"image-name:\n\t@echo {IMAGE}\n")
    (tmp_path / ".runpod").mkdir()
    hub = {"config": {"runsOn": "CPU", "cpuFlavor": "cpu5c", "containerDiskInGb": 5}}
    (tmp_path / ".runpod" / "hub.json").write_text(json.dumps(hub))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    monkeypatch.setenv("RUNPOD_API_BASE_URL", account.url)
    monkeypatch.delenv("RUNPOD_ENDPOINT_BASE_URL", raising=False)

    def run(*arguments: str) -> Said:
        status: Any = 0
        try:
            main(["deploy", *arguments])
        except SystemExit as end:
            status = end.code
        out, err = capsys.readouterr()
        return Said(1, out, f"{err}{status}\n") if isinstance(status, str) else Said(status, out, err)

    with stamina.set_testing(True, attempts=rest.TRIES):
        yield run
    stamina.instrumentation.set_on_retry_hooks(None)


def test_the_first_deploy_creates_an_endpoint_and_says_how_to_call_it(account: Account, deploy: Deploy) -> None:
    assert deploy().out == (
        f"Created    my-worker: {IMAGE}\n"
        "Endpoint   ep0\n"
        "Call it    RUNPOD_ENDPOINT_ID=ep0 aggregating-worker runsync test_input.json\n"
        "Watch it   https://console.runpod.io/serverless/user/endpoint/ep0\n"
    )
    assert account.requests[1:2] == [
        (
            "POST",
            {
                "name": "my-worker",
                "type": "QUEUE",
                "image": IMAGE,
                "disk": 5,
                "cpu": [{"id": "cpu5c", "vcpuCount": 2}],
                "workers": {"min": 0, "max": 3, "idleTimeout": 10},
                "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4},
                "timeout": 600_000,
                "flashboot": "FLASHBOOT",
            },
        )
    ]


def test_what_the_command_names_goes_before_the_defaults(account: Account, deploy: Deploy) -> None:
    deploy("--timeout", "60", "--registry", "mine", "--idle-timeout", "5", "--workers-min", "1", "--env", "A=b=c")
    [endpoint] = account.endpoints
    assert (endpoint["timeout"], endpoint["registry"]) == (60_000, "mine")
    assert endpoint["workers"] == {"min": 1, "max": 3, "idleTimeout": 5}
    assert endpoint["env"] == {"A": "b=c"}


def test_the_same_name_twice_is_one_endpoint(account: Account, deploy: Deploy) -> None:
    assert deploy("--name", "twice", "--image", f"{NAME}:v1").out.startswith("Created")
    assert deploy("--name", "twice", "--image", f"{NAME}:v2").out.startswith(f"Updated    twice: {NAME}:v2\n")
    [endpoint] = account.endpoints
    assert endpoint["image"] == f"{NAME}:v2"


def test_an_update_leaves_alone_what_the_command_does_not_name(account: Account, deploy: Deploy) -> None:
    workers = {"min": 1, "max": 9, "idleTimeout": 60}
    endpoint = account.holds("my-worker", workers=workers, env={"KEPT": "1", "OLD": "1"}, timeout=5)
    deploy("--workers-max", "12", "--env", "OLD=2", "--env", "NEW=")
    assert endpoint["workers"] == {**workers, "max": 12}
    assert endpoint["env"] == {"KEPT": "1", "OLD": "2", "NEW": ""}
    assert (endpoint["timeout"], endpoint["image"]) == (5, IMAGE)
    deploy()
    assert account.requests[-1] == ("PATCH", {"image": IMAGE})


def test_an_update_can_name_other_hardware_of_the_same_kind(account: Account, deploy: Deploy) -> None:
    endpoint = account.holds("my-worker", gpu={"pools": ["ADA_24"], "count": 2})
    deploy("--gpu", "AMPERE_24", "AMPERE_16")
    assert endpoint["gpu"] == {"pools": ["AMPERE_24", "AMPERE_16"], "count": 2}
    assert deploy("--cpu", "cpu5c").err == "Runpod answered 400 (compute family cannot be changed).\n"


def test_an_endpoint_can_be_placed_and_started_otherwise(account: Account, deploy: Deploy) -> None:
    deploy("--data-centers", "EU-RO-1", "US-KS-2", "--network-volumes", "vol", "--flash-boot", "priority")
    [endpoint] = account.endpoints
    assert (endpoint["dataCenterIds"], endpoint["networkVolumes"]) == (["EU-RO-1", "US-KS-2"], ["vol"])
    assert endpoint["flashboot"] == "PRIORITY_FLASHBOOT"
    deploy("--data-centers", "--network-volumes", "--flash-boot", "off")
    assert (endpoint["dataCenterIds"], endpoint["networkVolumes"], endpoint["flashboot"]) == ([], [], "OFF")


def test_an_endpoint_that_scales_by_requests_has_no_idle_timeout(account: Account, deploy: Deploy) -> None:
    """The API refuses one."""
    refusal = (
        "An endpoint that scales by requests has no idle timeout: leave --idle-timeout out, or give --scale-by delay.\n"
    )
    assert deploy("--scale-by", "requests", "--idle-timeout", "5").err == refusal
    assert deploy("--scale-by", "requests").out.startswith("Created")
    [endpoint] = account.endpoints
    assert endpoint["scaling"] == {"type": "REQUEST_COUNT", "requestCount": 4}
    assert endpoint["workers"] == {"min": 0, "max": 3}
    assert deploy("--idle-timeout", "5").err == refusal
    assert deploy("--scale-by", "delay=2", "--idle-timeout", "5").out.startswith("Updated")
    assert endpoint["scaling"] == {"type": "QUEUE_DELAY", "queueDelay": 2}
    assert endpoint["workers"] == {"min": 0, "max": 3, "idleTimeout": 5}
    assert deploy("--scale-by", "requests=1", "--workers-max", "5").out.startswith("Updated")
    assert endpoint["workers"] == {"min": 0, "max": 5}


def test_a_least_cuda_version_replaces_a_list_of_them(account: Account, deploy: Deploy) -> None:
    endpoint = account.holds("my-worker", gpu={"pools": ["ADA_24"], "count": 2, "allowedCudaVersions": ["12.8"]})
    assert deploy("--min-cuda-version", "12.9").out.startswith("Updated")
    cuda = {"allowedCudaVersions": [], "minCudaVersion": "12.9"}
    assert endpoint["gpu"] == {"pools": ["ADA_24"], "count": 2, **cuda}


def test_a_worker_on_a_cpu_has_no_cuda_version(account: Account, deploy: Deploy) -> None:
    assert deploy("--min-cuda-version", "12.8").err == (
        "A CPU has no CUDA: leave --min-cuda-version out, or give --gpu.\n"
    )
    assert deploy("--min-cuda-version", "12.8", "--cpu", "cpu5c").status == 2
    assert {method for method, _ in account.requests} == {"GET"}


def test_an_update_to_another_image_says_how_to_go_back(account: Account, deploy: Deploy) -> None:
    endpoint = account.holds("my-worker", image=f"{NAME}:v1")
    *_, back = deploy().out.splitlines()
    assert back == f"Go back    aggregating-worker deploy --name my-worker --image {NAME}:v1"
    deploy(*back.split()[4:])
    assert endpoint["image"] == f"{NAME}:v1"
    assert "Go back" not in deploy("--image", f"{NAME}:v1", "--workers-max", "5").out


def test_a_name_that_marks_flashboot_is_the_same_name(account: Account, deploy: Deploy) -> None:
    account.holds("my-worker -fb")
    assert deploy().out.startswith("Updated")
    assert account.endpoints[0]["name"] == "my-worker -fb"


def test_two_endpoints_with_the_name_are_an_error_that_names_their_ids(account: Account, deploy: Deploy) -> None:
    account.holds("my-worker")
    account.holds("my-worker")
    words = "2 endpoints are called my-worker (ep0, ep1): delete all but one, or choose another --name.\n"
    assert deploy().err == words
    assert [method for method, _ in account.requests] == ["GET"]


def test_an_endpoint_without_a_queue_is_not_touched(account: Account, deploy: Deploy) -> None:
    account.holds("my-worker", type="LOAD_BALANCER")
    assert "choose another --name" in deploy().err
    assert [method for method, _ in account.requests] == ["GET"]


FLAVORS = st.sampled_from(["cpu5c", "cpu3g-2-8", "cpu3c-4", "x-128-1"])
POOLS = st.sampled_from(["ADA_24", "AMPERE_16", "x"])
WORDS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1)
NAMES = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1)
VARIABLES = st.tuples(st.sampled_from(["A", "_b", "C3"]), st.text(st.characters(codec="utf-8"))).map("=".join)


OPTIONS = """
name image cpu gpu workers-min workers-max idle-timeout scale-by timeout registry min-cuda-version flash-boot
data-centers network-volumes env
""".split()


@st.composite
def arguments(draw: st.DrawFn) -> list[str]:
    least = draw(st.integers(0, 3))
    options: dict[str, Any] = {
        "--name": NAMES,
        "--image": WORDS,
        "--workers-min": st.just(least),
        "--workers-max": st.integers(least, 10**9 - 1),
        "--idle-timeout": st.integers(1, 3600),
        "--timeout": st.integers(5, 604_800),
        "--registry": WORDS,
        "--scale-by": st.sampled_from(["delay", "delay=1", "requests", "requests=100"]),
        "--flash-boot": st.sampled_from(["on", "off", "priority"]),
        "--data-centers": WORDS,
        "--network-volumes": WORDS,
    }
    chosen = draw(st.sets(st.sampled_from(list(options))))
    compute = draw(
        st.lists(FLAVORS, min_size=1).map(lambda flavors: ["--cpu", *flavors])
        | st.lists(POOLS, min_size=1).map(lambda pools: ["--gpu", *pools])
        | st.lists(POOLS, min_size=1).map(lambda pools: ["--min-cuda-version=12.8", "--gpu", *pools])
    )
    variables = [f"--env={variable}" for variable in draw(st.lists(VARIABLES, max_size=3))]
    return [f"{option}={draw(options[option])}" for option in sorted(chosen)] + variables + compute


ENDPOINTS = st.builds(
    Endpoint,
    id=st.text(),
    env=st.none() | st.dictionaries(st.text(), st.text()),
    workers=st.fixed_dictionaries(
        {"min": st.integers(0, 3), "max": st.integers(3, 9)}, optional={"idleTimeout": st.integers(1, 3600)}
    ),
    scaling=st.sampled_from([{"type": "QUEUE_DELAY", "queueDelay": 4}, {"type": "REQUEST_COUNT", "requestCount": 4}]),
)
REFUSED = ("--workers-min", "--idle-timeout", "--min-cuda-version")
"""What is named where arguments do not go together, or not with the endpoint."""


@pytest.mark.parametrize(
    "fault",
    [
        {"name": ""},
        {"type": "queue"},
        {"gpu": {"pools": ["ADA_24"]}},
        {"cpu": []},
        {"cpu": [{"id": "cpu5c"}]},
        {"cpu": [{"id": "cpu5c", "vcpuCount": 2, "memory": 4}]},
        {"disk": 0},
        {"disk": "5"},
        {"env": {"A": 1}},
        {"workers": {"min": -1}},
        {"workers": {"idleTimeout": 3601}},
        {"scaling": {"type": "QUEUE_DELAY"}},
        {"scaling": {"type": "REQUEST_COUNT", "requestCount": 4}},  # beside an idle timeout
        {"scaling": {"type": "REQUEST_COUNT", "queueDelay": 4}, "workers": {}},
        {"flashboot": "ON"},
        {"dataCenterIds": "EU-RO-1"},
        {"timeout": 0.5},
        {"idleTimeout": 10},
    ],
)
def test_the_contract_here_refuses_what_the_api_refuses(fault: dict[str, Any]) -> None:
    body = creation(read_arguments(["--cpu", "cpu5c"]), IMAGE, "name")
    assert CREATE.is_valid(body)
    assert not CREATE.is_valid(body | fault)


@settings(deadline=None)
@given(arguments())
def test_what_creates_an_endpoint_is_within_the_contract(argv: list[str]) -> None:
    asked = read_arguments(argv)
    try:
        body = creation(asked, asked.image or IMAGE, asked.name or "name")
    except DeployFailed as failed:
        assert any(name in str(failed) for name in REFUSED)
    else:
        CREATE.validate(body)


@settings(deadline=None)
@given(arguments(), ENDPOINTS)
def test_what_updates_an_endpoint_is_within_the_contract(argv: list[str], existing: Endpoint) -> None:
    try:
        body = change(read_arguments(argv), IMAGE, existing)
    except DeployFailed as failed:
        assert any(name in str(failed) for name in REFUSED)  # more than the endpoint's own most, for one
    else:
        UPDATE.validate(body)


@settings(deadline=None)
@given(
    st.sampled_from(["--cpu=cpu5c", "--gpu=ADA_24"]),
    st.lists(st.tuples(st.sampled_from(OPTIONS), st.text() | st.integers().map(str))),
)
def test_any_argument_is_refused_or_within_the_contract(compute: str, pairs: list[tuple[str, str]]) -> None:
    with redirect_stderr(StringIO()) as err:
        try:
            asked = read_arguments([compute, *(f"--{option}={value}" for option, value in pairs)])
            body = creation(asked, asked.image or IMAGE, asked.name or "name")
        except SystemExit as end:
            assert end.code == 2
            assert err.getvalue().splitlines()[-1].startswith("aggregating-worker deploy: error: argument --")
        except DeployFailed as failed:
            assert any(name in str(failed) for name in REFUSED)
        else:
            CREATE.validate(body)


@pytest.mark.parametrize(
    "argument",
    [
        "--name= ",
        "--name=two\nlines",
        "--image=two words",
        "--image=",
        "--cpu=cpu5c-3-6",
        "--cpu=cpu5c-1-2",
        "--cpu=CPU",
        "--gpu=",
        "--workers-min=-1",
        "--workers-max=1.5",
        "--workers-max=many",
        "--idle-timeout=0",
        "--idle-timeout=3601",
        "--timeout=4",
        "--scale-by=workers",
        "--scale-by=delay=0",
        "--scale-by=requests=1.5",
        "--scale-by=requests=-1",
        "--min-cuda-version=12",
        "--min-cuda-version=12.8+",
        "--flash-boot=yes",
        "--data-centers=",
        "--network-volumes=a b",
        "--wait=-1",
        "--wait=3601",
        "--env=1=2",
        "--env==2",
        "--env=NOT_SET_HERE",
        "--env=NAME=\udc80",
    ],
)
def test_a_value_outside_the_contract_is_refused_before_anything_is_sent(
    account: Account, deploy: Deploy, argument: str
) -> None:
    said = deploy(argument)
    assert said.status == 2
    assert said.err.splitlines()[-1].startswith(f"aggregating-worker deploy: error: argument {argument.split('=')[0]}")
    assert account.requests == []


def test_more_workers_at_least_than_at_most_are_refused(account: Account, deploy: Deploy) -> None:
    refusal = "The minimum of 4 workers is above the maximum of 3: give --workers-min and --workers-max.\n"
    assert deploy("--workers-min", "4").err == refusal
    account.holds("my-worker")
    assert deploy("--workers-min", "4").err == refusal
    assert deploy("--workers-min", "4", "--workers-max", "4").status == 0


@pytest.mark.parametrize(
    ("config", "arguments", "expected"),
    [
        (
            {"runsOn": "GPU", "gpuIds": "ADA_24, AMPERE_24,-NVIDIA L4", "gpuCount": 2, "containerDiskInGb": 20},
            [],
            {
                "disk": 20,
                "gpu": {"pools": ["ADA_24", "AMPERE_24"], "count": 2, "excludedTypes": ["NVIDIA L4"]},
            },
        ),
        (
            {
                "runsOn": "GPU",
                "gpuIds": "ADA_24,-NVIDIA L4",
                "gpuCount": 2,
                "containerDiskInGb": 20,
                "allowedCudaVersions": ["12.9", "12.8"],
            },
            ["--gpu", "HOPPER_141"],
            {"disk": 20, "gpu": {"pools": ["HOPPER_141"], "count": 2, "allowedCudaVersions": ["12.9", "12.8"]}},
        ),
        (
            {"runsOn": "GPU", "gpuIds": "ADA_24", "containerDiskInGb": 20, "allowedCudaVersions": ["12.9", "12.8"]},
            [],
            {"disk": 20, "gpu": {"pools": ["ADA_24"], "count": 1, "allowedCudaVersions": ["12.9", "12.8"]}},
        ),
        (
            {"runsOn": "GPU", "gpuIds": "ADA_24", "containerDiskInGb": 20, "allowedCudaVersions": ["12.9", "12.8"]},
            ["--min-cuda-version", "13.0"],
            {"disk": 20, "gpu": {"pools": ["ADA_24"], "count": 1, "minCudaVersion": "13.0"}},
        ),
        (
            {"runsOn": "GPU", "gpuIds": "ADA_24", "gpuCount": 2, "containerDiskInGb": 20},
            ["--cpu", "cpu3c", "cpu3c-2-4", "cpu5c-8-16"],
            {"disk": 20, "cpu": [{"id": "cpu3c", "vcpuCount": 2}, {"id": "cpu5c", "vcpuCount": 8}]},
        ),
        (None, ["--cpu", "cpu3c"], {"cpu": [{"id": "cpu3c", "vcpuCount": 2}]}),
    ],
)
def test_a_new_endpoint_runs_on_what_is_asked_for_or_else_what_the_hub_is_told(
    deploy: Deploy, tmp_path: Path, config: dict[str, Any] | None, arguments: list[str], expected: dict[str, Any]
) -> None:
    hub = tmp_path / ".runpod" / "hub.json"
    hub.unlink() if config is None else hub.write_text(json.dumps({"config": config}))
    _, body = deploy("--dry-run", *arguments).request
    CREATE.validate(body)
    assert {name: body[name] for name in ("disk", "cpu", "gpu") if name in body} == expected


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("pyproject.toml", "[tool.ruff]", "pyproject.toml does not name the project: give --name."),
        ("Makefile", "all:\n", "`make image-name` does not say registry/name:tag (make: *** No rule to make target"),
        ("Makefile", "image-name:\n", "`make image-name` does not say registry/name:tag (nothing): give --image."),
        (
            "Makefile",
            f"image-name:\n\t@echo {NAME}",
            f"`make image-name` does not say registry/name:tag ({NAME}): give",
        ),
        ("Makefile", None, "`make image-name` does not say registry/name:tag (make: *** No rule to make target"),
        (".runpod/hub.json", "{", ".runpod/hub.json does not say what the worker runs on: see"),
        (".runpod/hub.json", '{"config": {"runsOn": "CPU", "containerDiskInGb": 0}}', ".runpod/hub.json does not say"),
        (
            ".runpod/hub.json",
            '{"config": {"runsOn": "GPU", "gpuIds": "ADA_24", "containerDiskInGb": 1, "allowedCudaVersions": ["12"]}}',
            ".runpod/hub.json does not say",
        ),
        (".runpod/hub.json", None, "Say what the worker runs on: --cpu, such as cpu5c, or --gpu, such as ADA_24."),
    ],
)
def test_a_project_that_does_not_say_what_is_needed_is_a_sentence(
    deploy: Deploy, tmp_path: Path, name: str, text: str | None, sentence: str
) -> None:
    (tmp_path / name).unlink() if text is None else (tmp_path / name).write_text(text)
    said = deploy()
    assert said.status == 1
    assert said.err.startswith(sentence)
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("variable", ["MAKEFLAGS=n", "MAKEFLAGS=wB", "TAG=mine"])
def test_the_image_is_the_one_of_the_makefile_also_under_make(
    deploy: Deploy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    (tmp_path / "Makefile").write_text(f"TAG ?= 1\nimage-name:\n\t@echo {NAME}:$(TAG)\n")
    name, _, value = variable.partition("=")
    monkeypatch.setenv(name, value)
    assert deploy("--dry-run").request[1]["image"] == (f"{NAME}:mine" if name == "TAG" else f"{NAME}:1")


def test_make_that_is_missing_is_a_sentence(deploy: Deploy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    missing = "`make image-name` does not say registry/name:tag (make: No such file or directory): give --image.\n"
    assert deploy().err == missing
    assert deploy("--image", IMAGE).out.startswith(f"Created    my-worker: {IMAGE}\n")


def test_a_dry_run_shows_the_request_and_sends_none(
    account: Account, deploy: Deploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = deploy("--dry-run")
    assert created.out.startswith(f"POST {account.url}/v2/serverless\n")
    monkeypatch.setenv("SECRET", "hidden")
    account.holds("my-worker", env={"OTHER": "hidden"})
    updated = deploy("--dry-run", "--env", "SECRET", "--env", "PLAIN=shown")
    assert updated.out.startswith(f"PATCH {account.url}/v2/serverless/ep0\n")
    env = {"OTHER": "***", "SECRET": "***", "PLAIN": "shown"}
    assert updated.request == ("PATCH", {"image": IMAGE, "env": env})
    assert {method for method, _ in account.requests} == {"GET"}
    deploy("--env", "SECRET", "--env", "PLAIN=shown")
    assert account.endpoints[0]["env"] == {"OTHER": "hidden", "SECRET": "hidden", "PLAIN": "shown"}


def test_a_dry_run_needs_no_key(account: Account, deploy: Deploy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY")
    account.holds("my-worker")
    said = deploy("--dry-run")
    assert said.request[0] == "POST"
    assert said.err == "RUNPOD_API_KEY is not set: this is the request if no endpoint has the name yet.\n"
    assert account.requests == []


def test_no_key_is_a_sentence_that_says_where_to_get_one(
    account: Account, deploy: Deploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY")
    said = deploy()
    assert (said.status, said.out) == (1, "")
    assert said.err == (
        "RUNPOD_API_KEY is not set: make a key at https://console.runpod.io/user/settings, under API Keys, and export "
        "it.\n"
    )
    assert account.requests == []


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (
            problem(400, "Max workers must not exceed your quota (30)."),
            "400 (Max workers must not exceed your quota (30)).",
        ),
        (problem(401, "missing bearer token"), "401 (missing bearer token): set RUNPOD_API_KEY to a key from https://"),
        (problem(403, "access denied"), "403 (access denied): give the key read and write access at https://"),
        (problem(404, "resource not found"), "404 (resource not found)."),
        (problem(409, "in use"), "409 (in use)."),
        (
            problem(
                422, "Request validation failed.", ["$.image: too long", "$: additional properties 'x' not allowed"]
            ),
            "422 (Request validation failed; $.image: too long; $: additional properties 'x' not allowed).",
        ),
        (problem(429, "rate limit exceeded"), "429 (rate limit exceeded): run the command again in a while."),
        (problem(500, "\x1b[31mbroken\r\nbadly"), "500 ([31mbroken badly): run the command again in a while."),
        (HTMLResponse("<h1>Bad gateway</h1>", 502), "502 (Bad Gateway): run the command again in a while."),
        (JSONResponse(["odd"], 418), "418 (I'm a Teapot)."),
        (Response(status_code=307, headers={"Location": "https://example.org"}), "307 (Temporary Redirect)."),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_error_is_one_sentence_with_the_apis_own_detail(
    account: Account, deploy: Deploy, method: str, answer: Response, sentence: str
) -> None:
    account.faults[:] = [Fault(method, answer)] * rest.TRIES
    said = deploy()
    assert (said.status, said.out) == (1, "")
    *notices, last = said.err.splitlines()
    assert last.startswith(f"Runpod answered {sentence}")
    assert all(notice.endswith("trying again in 0 s.") for notice in notices)
    assert account.endpoints == []


@pytest.mark.parametrize("answer", [PlainTextResponse("{"), JSONResponse([]), JSONResponse({"endpoints": None})])
def test_an_answer_that_is_not_the_apis_is_a_sentence(account: Account, deploy: Deploy, answer: Response) -> None:
    account.faults[:] = [Fault("GET", answer)]
    said = deploy()
    assert said.status == 1
    assert said.err.startswith(f"{account.url} does not answer with")
    assert said.err.endswith(": check RUNPOD_API_BASE_URL.\n")


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1", "https://", "http://127.0.0.1:port"])
def test_a_bad_address_is_a_sentence(deploy: Deploy, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("RUNPOD_API_BASE_URL", url)
    said = deploy()
    assert said.status == 1
    assert said.err == ("RUNPOD_API_BASE_URL is not a URL: unset it, or give one such as https://api.runpod.io.\n")


def test_a_proxy_that_cannot_be_used_is_a_sentence(deploy: Deploy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "nonsense://127.0.0.1")
    said = deploy()
    assert said.status == 1
    assert said.err.startswith("The proxy in HTTP_PROXY, HTTPS_PROXY or ALL_PROXY cannot be used (")
    assert said.err.endswith("): mend or unset it.\n")


def test_nobody_at_the_address_is_a_sentence(deploy: Deploy, monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setenv("RUNPOD_API_BASE_URL", f"http://127.0.0.1:{free_port}")
    said = deploy()
    assert said.status == 1
    *notices, last = said.err.splitlines()
    assert len(notices) == rest.TRIES - 1
    assert last.startswith(f"No answer from http://127.0.0.1:{free_port} (")
    assert last.endswith("): run the command again in a while.")


def lost() -> StreamingResponse:
    return StreamingResponse(lost_half_way(), 201, headers={"Content-Length": "1000"})


@pytest.mark.parametrize("answer", [problem(502, "lost"), lost(), PlainTextResponse("created!", 201), None])
def test_an_endpoint_whose_creation_was_not_answered_is_found_by_its_name(
    account: Account, deploy: Deploy, monkeypatch: pytest.MonkeyPatch, answer: Response | None
) -> None:
    monkeypatch.setattr(rest, "SECONDS", 0.5)
    account.faults[:] = [Fault("POST", answer, carried_out=True)]
    assert deploy().out.startswith(f"Created    my-worker: {IMAGE}\nEndpoint   ep0\n")
    assert [method for method, _ in account.requests] == ["GET", "POST", "GET"]
    assert len(account.endpoints) == 1


def test_a_creation_that_failed_is_not_repeated(account: Account, deploy: Deploy) -> None:
    account.faults[:] = [Fault("POST", problem(503, "try later"))]
    assert deploy().err == "Runpod answered 503 (try later): run the command again in a while.\n"
    assert [method for method, _ in account.requests] == ["GET", "POST", "GET"]
    assert deploy().out.startswith("Created")
    assert len(account.endpoints) == 1


def test_an_endpoint_that_somebody_else_has_made_meanwhile_is_not_taken_for_ours(
    account: Account, deploy: Deploy
) -> None:
    theirs = account.holds("my-worker", image="docker.io/them/worker")
    account.faults[:] = [Fault("GET", JSONResponse({"endpoints": []})), Fault("POST", problem(500, "lost"))]
    assert deploy().status == 1
    assert deploy().out.startswith("Updated")
    assert theirs["image"] == IMAGE


def test_what_can_be_repeated_is_tried_again(account: Account, deploy: Deploy) -> None:
    limited = problem(429, "rate limit exceeded")
    limited.headers["Retry-After"] = "12"
    account.faults[:] = [Fault("GET", problem(503, "busy")), Fault("GET", lost()), Fault("POST", limited)]
    said = deploy()
    assert said.out.startswith("Created")
    assert "Runpod answered 503 (busy): trying again in" in said.err
    account.faults[:] = [Fault("PATCH", problem(502, "busy"), carried_out=True)]
    assert deploy().out.startswith("Updated")
    assert len(account.endpoints) == 1


def test_a_limit_that_lasts_long_is_not_waited_for(account: Account, deploy: Deploy) -> None:
    limited = problem(429, "rate limit exceeded for the day window")
    limited.headers["Retry-After"] = "45012"
    account.faults[:] = [Fault("GET", limited)]
    assert deploy().err == (
        "Runpod answered 429 (rate limit exceeded for the day window): run the command again in a while.\n"
    )
    assert len(account.requests) == 1


def echo(status: int) -> JSONResponse:
    return problem(status, f"bad key {KEY}", [f"Bearer {KEY}"])


@pytest.mark.parametrize(
    ("arguments", "faults"),
    [
        ([], []),
        ([], [Fault("GET", echo(401))]),
        ([], [Fault("GET", echo(503))]),
        ([], [Fault("POST", echo(422))]),
        ([], [Fault("POST", echo(500), carried_out=True)]),
        ([], [Fault("GET", HTMLResponse(KEY, 400))]),
        ([], [Fault("POST", JSONResponse({"id": KEY, "image": KEY, "workers": {}}, 201))]),
        ([], [Fault("GET", JSONResponse({"endpoints": [{"name": "my-worker", "id": KEY}] * 2}))]),
        (["--dry-run", "--env", "RUNPOD_API_KEY", "--env", f"COPY={KEY}", "--registry", KEY], []),
        (["--name", KEY], []),
        (["--image", f"{KEY} {KEY}"], []),
        (["--env", KEY], []),
        (["--env", f"{KEY}=1"], []),
        (["--env", f"1={KEY}"], []),
        ([KEY], []),
    ],
)
def test_the_key_is_in_no_output(account: Account, deploy: Deploy, arguments: list[str], faults: list[Fault]) -> None:
    account.faults[:] = faults
    said = deploy(*arguments)
    assert said.out or said.err
    assert KEY not in said.out + said.err


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "ünï", '"quoted"'])
def test_a_key_that_cannot_be_one_is_not_sent(
    account: Account, deploy: Deploy, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", key)
    said = deploy()
    assert said.err.startswith("RUNPOD_API_KEY is not an API key: make one at https://")
    assert key not in said.err
    assert account.requests == []


@pytest.mark.parametrize("arguments", [["--env", "SECRET"], ["--env", "NEW=shown"], []])
@pytest.mark.parametrize("status", [422, 503])
def test_an_error_that_quotes_a_value_that_nobody_typed_shows_stars_in_its_place(
    account: Account, deploy: Deploy, monkeypatch: pytest.MonkeyPatch, arguments: list[str], status: int
) -> None:
    monkeypatch.setenv("SECRET", "of this machine")
    account.holds("my-worker", env={"OTHER": "of the endpoint", "ONE": "a"})
    quoted = "of this machine" if "SECRET" in arguments else "of the endpoint"
    account.faults[:] = [Fault("PATCH", problem(status, f"refused: {quoted}, NEW=shown", [quoted]))] * rest.TRIES
    said = deploy(*arguments)
    assert f"Runpod answered {status} (refused: ***, NEW=shown; ***)" in said.err
    assert quoted not in said.err


@pytest.mark.parametrize("form", [str, json.dumps, repr, lambda value: json.dumps({"env": value}, ensure_ascii=False)])
def test_an_error_that_quotes_a_value_in_another_form_shows_stars_too(
    account: Account, deploy: Deploy, monkeypatch: pytest.MonkeyPatch, form: Callable[[str], str]
) -> None:
    secret = 'pa"ss\\wörd\nsecond line'
    monkeypatch.setenv("SECRET", secret)
    account.holds("my-worker")
    account.faults[:] = [Fault("PATCH", problem(400, f"refused: {form(secret)}"))]
    said = deploy("--env", "SECRET")
    assert "refused: " in said.err
    assert not {"ss", "second"} & {*re.findall(r"\w+", said.err)}


def test_values_that_are_not_shown_are_not_written_back(account: Account, deploy: Deploy) -> None:
    for number, mask in enumerate(["***", "sk-*****9f", "••••••••", "<redacted>", "XXXX"]):
        endpoint = account.holds(f"worker-{number}", env={"KEPT": "1", "TOKEN": mask})
        said = deploy("--name", f"worker-{number}", "--env", "NEW=1")
        assert said.err == (
            "An update replaces all variables, and Runpod hides the value of TOKEN: give it with --env, too.\n"
        )
        assert endpoint["env"] == {"KEPT": "1", "TOKEN": mask}
        deploy("--name", f"worker-{number}", "--image", f"{NAME}:v2")
        assert endpoint["env"] == {"KEPT": "1", "TOKEN": mask}
        deploy("--name", f"worker-{number}", "--env", "TOKEN=known")
        assert endpoint["env"] == {"KEPT": "1", "TOKEN": "known"}


@pytest.mark.parametrize("endpoint_id", ["../pods/x", "a b?c#d", "é"])
def test_an_endpoints_id_stays_within_its_path(endpoint_id: str) -> None:
    assert Endpoint(id=endpoint_id, workers={}).path == f"/v2/serverless/{quote(endpoint_id, safe='')}"


DOWN = {"idle": 0, "initializing": 0, "ready": 0, "running": 0, "throttled": 0, "unhealthy": 0}


@pytest.fixture
def job_api(account: Account, deploy: Deploy, monkeypatch: pytest.MonkeyPatch) -> Account:
    """The account, which also says how the workers are, and is asked again after a short while."""
    monkeypatch.setenv("RUNPOD_ENDPOINT_BASE_URL", f"{account.url}/v2")
    monkeypatch.setattr(coming_up, "EVERY", 0.02)
    return account


@pytest.mark.parametrize("workers", [{}, {"initializing": 3}, {"throttled": 3}, {"initializing": 1, "unhealthy": 2}])
def test_an_endpoint_that_does_not_come_up_is_explained(
    job_api: Account, deploy: Deploy, workers: dict[str, int]
) -> None:
    job_api.health[:] = [DOWN | workers]
    said = deploy("--wait", "1")
    assert (said.status, said.out.splitlines()[1]) == (0, "Endpoint   ep0")
    expected = (
        why({"jobs": {}, "workers": DOWN | workers}) if workers else "No worker runs yet: the first job starts one."
    )
    assert said.err == f"{expected}\n{NEXT}"


def test_an_endpoint_that_is_to_have_a_worker_and_has_none_is_explained(job_api: Account, deploy: Deploy) -> None:
    job_api.health[:] = [DOWN]
    said = deploy("--wait", "1", "--workers-min", "1")
    assert said.err == f"{why({'jobs': {}, 'workers': DOWN})}\n{NEXT}"


def test_a_job_api_that_does_not_answer_is_waited_for_no_longer_than_was_said(
    job_api: Account, deploy: Deploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = []

    def get(*_: Any, timeout: float, **__: Any) -> httpx2.Response:
        waited.append(timeout)
        raise httpx2.ReadTimeout("silent")

    monkeypatch.setattr(coming_up, "Rest", lambda *arguments: patched(rest.Rest(*arguments)))

    def patched(asked: rest.Rest) -> rest.Rest:
        monkeypatch.setattr(httpx2, "request", get)
        return asked

    monkeypatch.setattr(coming_up, "EVERY", 2.0)
    said = deploy("--wait", "1")
    assert said.err.startswith("Whether a worker comes up is not known: No answer from ")
    assert len(waited) == 1
    assert waited[0] <= 2


@pytest.mark.parametrize("state", ["idle", "ready", "running"])
def test_nothing_is_said_of_an_endpoint_that_has_come_up(job_api: Account, deploy: Deploy, state: str) -> None:
    unknown = problem(404, "endpoint not found")  # for a moment after its creation
    job_api.health[:] = [unknown, DOWN, DOWN | {"initializing": 3}, DOWN | {state: 1, "throttled": 2}]
    said = deploy()
    assert (said.status, said.err) == (0, "")
    assert len(job_api.health) == 1


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (problem(404, "endpoint not found"), "Runpod answered 404 (endpoint not found)."),
        (problem(403, f"not with {KEY}"), "Runpod answered 403 (not with ***)."),
        (problem(503, "\x1b[31mbusy"), "Runpod answered 503 ([31mbusy)."),
        (PlainTextResponse("{"), "{url}/v2 does not answer with JSON."),
        (JSONResponse([]), "{url}/v2 does not say how many workers the endpoint has."),
        (JSONResponse({"workers": 3}), "{url}/v2 does not say how many workers the endpoint has."),
    ],
)
def test_where_nobody_can_say_whether_it_comes_up_it_is_deployed_all_the_same(
    job_api: Account, deploy: Deploy, answer: Response, sentence: str
) -> None:
    job_api.health[:] = [answer]
    said = deploy("--wait", "1")
    assert (said.status, said.out.splitlines()[1]) == (0, "Endpoint   ep0")
    expected = "Whether a worker comes up is not known: " + sentence.format(url=job_api.url)
    assert said.err.splitlines()[-2:] == [expected, NEXT.strip()]


def test_a_wrong_address_of_the_job_api_is_a_sentence(
    job_api: Account, deploy: Deploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNPOD_ENDPOINT_BASE_URL", "htp:/x")
    said = deploy("--wait", "1")
    assert said.out.startswith("Created")
    assert said.err == f"Whether a worker comes up is not known: RUNPOD_ENDPOINT_BASE_URL is not a URL.\n{NEXT}"


@pytest.mark.parametrize("arguments", [["--wait", "0"], ["--dry-run"]])
def test_the_workers_are_not_looked_at_where_there_are_none_to_wait_for(
    job_api: Account, deploy: Deploy, arguments: list[str]
) -> None:
    assert (deploy(*arguments).status, job_api.health) == (0, [])  # it has no answer


def test_a_key_for_another_api_is_not_sent_to_runpods(
    account: Account, deploy: Deploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coming_up, "BASE_URL", f"{account.url}/v2")  # where it would have no answer
    assert deploy().err == ""


def test_ctrl_c_ends_the_waiting_and_nothing_else(
    job_api: Account, deploy: Deploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupt)
    job_api.health[:] = [DOWN]
    said = deploy()
    assert (said.status, said.err) == (0, "")
    assert said.out.startswith("Created")


def test_the_command_runs_as_a_module(account: Account) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aggregating_worker", "deploy", "--name", "module", "--image", IMAGE, "--cpu", "cpu3c"],
        cwd=LIBRARY,
        env={**os.environ, "RUNPOD_API_KEY": KEY, "RUNPOD_API_BASE_URL": account.url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Created    module: ")
    assert [endpoint["name"] for endpoint in account.endpoints] == ["module"]
