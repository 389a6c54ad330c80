"""What a bake says of its worker: to the Hub, to Docker, to whoever reads its SECURITY.md."""

def test_the_image_runs_as_a_user_with_a_number() -> None:
    """The engine can check a number, ``runAsNonRoot`` for one, without looking into the image."""
    last_stage = (LIBRARY / "Dockerfile").read_text(encoding="utf-8").rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (.*)$", last_stage, re.MULTILINE) == ["1000:1000"]


def sent_to_the_builder(path: str) -> bool:
    """Whether ``.dockerignore`` lets ``path`` through, by Docker's rules.

    A rule holds for a path and all below it; ``*`` stays in one folder, ``**`` does not; the last rule that fits wins.
    https://docs.docker.com/build/concepts/context/#syntax
    """
    lines = (LIBRARY / ".dockerignore").read_text(encoding="utf-8").splitlines()
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
    text = (LIBRARY / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE) == [
        "requirements-run.txt /",
        "requirements.txt /",
        ". .",
    ]
    assert re.findall(r"^COPY --from=(.*)$", text, re.MULTILINE) == ["dependencies /image /", "code /image /"]



def test_every_test_that_is_named_exists() -> None:
    text = (LIBRARY / "SECURITY.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    named = [re.findall(r"`(\w+\.py)::([\w:]+)`", row) for row in rows]
    assert rows
    assert all(named), "each claim names the test that holds it"
    for file, place in {each for names in named for each in names}:
        scope: list[ast.stmt] = ast.parse((LIBRARY / "tests" / "machinery" / file).read_text(encoding="utf-8")).body
        for name in place.split("::"):
            [found] = [each for each in scope if getattr(each, "name", None) == name]
            scope = getattr(found, "body", [])


def test_the_hub_offers_every_setting_with_its_default_and_bounds() -> None:
    hub = json.loads((LIBRARY / ".runpod" / "hub.json").read_text(encoding="utf-8"))
    offered = {entry["key"].lower(): entry["input"] for entry in hub["config"]["env"]}
    known = Settings.model_json_schema()["properties"]
    assert offered.keys() == known.keys()
    for name, setting in known.items():
        of = setting["anyOf"][0] if "anyOf" in setting else setting
        assert offered[name]["type"] == {"integer": "number"}.get(of["type"], of["type"])
        default = getattr(task, name.upper(), setting["default"])
        assert offered[name].get("default") == default or name == "item_concurrency"
        if of["type"] in ("integer", "number"):
            assert offered[name]["min"] == of.get("minimum", of.get("exclusiveMinimum", -1) + 1)
    batched = hasattr(task, "process_batch")
    function = getattr(task, "process_batch" if batched else "process")
    pool = Pool(function, Settings(), batched=batched)
    assert offered["item_concurrency"]["default"] == pool.concurrency


def test_the_sample_environment_has_every_setting_with_its_default() -> None:
    lines = (LIBRARY / ".env.example").read_text(encoding="utf-8").splitlines()
    sample = dict(line.removeprefix("# ").split("=") for line in lines if "=" in line)
    assert sample.keys() == {name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        assert field.default is None or sample[name.upper()] == str(field.default).lower()
