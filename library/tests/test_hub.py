"""``aggregating-worker hub``: the Hub's two files, checked field by field."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from aggregating_worker.deploy.hub import HUB, TESTS, main

SHOWN: dict[str, Any] = {
    "title": "Moods",
    "description": "Names the mood of a text.",
    "type": "serverless",
    "category": "language",
    "iconUrl": "https://example.org/icon.png",
    "config": {
        "runsOn": "GPU",
        "containerDiskInGb": 20,
        "gpuIds": "ADA_24,-NVIDIA GeForce RTX 4090",
        "gpuCount": 1,
        "allowedCudaVersions": ["12.8", "13.0"],
        "env": [
            {"key": "MODE", "value": "fast"},
            {"key": "MODEL_ID", "input": {"name": "Model", "type": "huggingface", "required": True}},
            {"key": "STEPS", "input": {"name": "Steps", "type": "number", "min": 1, "max": 9.5, "default": 4}},
            {"key": "SAFE", "input": {"name": "Safe", "type": "boolean", "default": True, "trueValue": "1"}},
            {
                "key": "STYLE",
                "input": {
                    "name": "Style",
                    "type": "string",
                    "options": [{"label": "Short", "value": "short"}],
                    "default": "short",
                },
            },
        ],
        "presets": [{"name": "Quick", "defaults": {"STEPS": 1, "SAFE": False, "STYLE": "short"}}],
    },
}
TESTED: dict[str, Any] = {
    "tests": [{"name": "moods", "input": {"items": ["old"]}, "timeout": 60_000}],
    "config": {"gpuTypeId": "NVIDIA L4", "gpuCount": 1, "env": [{"key": "MODE", "value": "fast"}]},
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    HUB.parent.mkdir()
    HUB.write_text(json.dumps(SHOWN))
    TESTS.write_text(json.dumps(TESTED))
    Path("test_input.json").write_text('{"input": {"items": ["new"]}}')
    return tmp_path


def changed(content: Any, path: str, value: Any) -> str:
    """Return ``content`` as JSON, with ``value`` at ``path``, or without what is there if ``value`` is None."""
    content = at = copy.deepcopy(content)
    *above, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in above:
        at = at[part]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return json.dumps(content)


def refusal() -> str:
    """Return the sentence with which ``make hub`` ends."""
    with pytest.raises(SystemExit) as refused:
        main(["hub"])
    return str(refused.value)


def test_the_job_of_the_test_input_is_tested_and_the_rest_stays(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["hub"])
    assert (
        TESTS.read_text()
        == json.dumps(json.loads(changed(TESTED, "tests.0.input", {"items": ["new"]})), indent=2) + "\n"
    )
    assert json.loads(HUB.read_text()) == SHOWN
    assert capsys.readouterr().out.startswith(".runpod/tests.json tests the job in test_input.json")


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("title", None, "title is missing"),
        ("description", "", "description String should have at least 1 character"),
        ("type", "pod", "type should be 'serverless'"),
        ("category", "text", "category should be 'audio', 'embedding', 'language', 'video' or 'image'"),
        ("iconUrl", "icon.png", "iconUrl String should match"),
        ("config.runsOn", "TPU", "config.runsOn should be 'GPU' or 'CPU'"),
        ("config.runsOn", "CPU", "config says that it runs on CPU, and so needs cpuFlavor"),
        ("config.gpuIds", None, "config says that it runs on GPU, and so needs gpuIds"),
        ("config.gpuCount", "1", "config.gpuCount should be a valid integer"),
        ("config.containerDiskInGb", 0, "config.containerDiskInGb should be greater than 0"),
        ("config.allowedCudaVersions.0", "12", "config.allowedCudaVersions[0] String should match"),
        ("config.gpuId", "ADA_24", "there is no field config.gpuId"),
        ("config.env.0.key", "MY-MODE", "config.env[0].key String should match"),
        ("config.env.0.value", None, "config.env[0] should have either a value or an input"),
        ("config.env.1.input.type", "model", "config.env[1].input.type should be 'string', 'huggingface'"),
        ("config.env.2.input.name", None, "config.env[2].input.name is missing"),
        ("config.env.2.input.min", "1", "config.env[2].input.min should be a valid number"),
        ("config.env.4.input.options.0.label", None, "config.env[4].input.options[0].label is missing"),
        ("config.presets.0.defaults", ["STEPS"], "config.presets[0].defaults should be a valid dictionary"),
    ],
)
def test_a_field_that_the_hub_would_not_take_is_named(project: Path, path: str, value: Any, sentence: str) -> None:
    HUB.write_text(changed(SHOWN, path, value))
    assert refusal().startswith(f".runpod/hub.json is not as Runpod's publishing guide has it: {sentence}")


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("tests.0.name", None, "tests[0].name is missing"),
        ("tests.0.timeout", "60", "tests[0].timeout should be a valid integer"),
        ("config", None, "config is missing"),
        ("config.gpuTypeId", None, "config should have either a gpuTypeId or a cpuFlavor"),
        ("config.cpuFlavor", "cpu5c", "config should have either a gpuTypeId or a cpuFlavor"),
        ("config.env.0.key", None, "config.env[0].key is missing"),
    ],
)
def test_a_field_of_the_tests_that_the_hub_would_not_take_is_named(
    project: Path, path: str, value: Any, sentence: str
) -> None:
    TESTS.write_text(changed(TESTED, path, value))
    assert refusal().startswith(f".runpod/tests.json is not as Runpod's publishing guide has it: {sentence}")


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        (HUB, None, ".runpod/hub.json cannot be read: No such file or directory."),
        (HUB, "{", ".runpod/hub.json is not JSON: "),
        (HUB, "[" * 100_000, ".runpod/hub.json is not JSON: "),
        (TESTS, None, ".runpod/tests.json cannot be read: No such file or directory."),
        (TESTS, '{"tests": []}', 'test_input.json should have an "input", and .runpod/tests.json "tests": see'),
        (Path("test_input.json"), "[]", 'test_input.json should have an "input", and .runpod/tests.json "tests": see'),
        (Path("test_input.json"), '{"input": "x"}', ".runpod/tests.json is not as Runpod's publishing guide"),
        (
            Path("test_input.json"),
            '{"input": {"items": ["\\ud83d"]}}',
            "test_input.json has a number or a text that is",
        ),
        (Path("test_input.json"), '{"input": {"items": [NaN]}}', "test_input.json has a number or a text that is"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_sentence_and_nothing_is_written(
    project: Path, file: Path, text: str | None, sentence: str
) -> None:
    file.unlink() if text is None else file.write_text(text)
    before = TESTS.read_bytes() if TESTS.exists() else b""
    assert refusal().startswith(sentence)
    assert (TESTS.read_bytes() if TESTS.exists() else b"") == before
    assert [*TESTS.parent.glob("*.part")] == []


def test_tests_of_the_owners_stay(project: Path) -> None:
    mine = {"name": "mine", "input": {"items": [1]}}
    TESTS.write_text(json.dumps({**TESTED, "tests": [*TESTED["tests"], mine]}))
    main(["hub"])
    first, second = json.loads(TESTS.read_text())["tests"]
    assert (first["input"], second) == ({"items": ["new"]}, mine)
