"""What a user meets in the first hour: the README's task, settings in ``.env``, an installation that is cut off."""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT, Bake, make

NATURAL = """
import base64
import io
import random

import jmespath
from PIL import Image

from tests.conftest import Serve
from tests.calling import Answer, Request, serve_http


def name(job, unused=None):
    return jmespath.search("id", job) or str(random.random())


def test_it_returns_the_thumbnail_itself(serve: Serve) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (640, 480), "tomato").save(picture, "PNG")

    def answer(request: Request) -> Answer:
        return Answer(200, picture.getvalue()) if request.path == "/tomato.png" else Answer(404)

    with serve_http(answer) as address:
        made, failed = serve().runsync([f"{address}/tomato.png", f"{address}/gone.png"], width=64)["output"]
    file = made["result"]
    thumbnail = Image.open(io.BytesIO(base64.b64decode(file["data"])))
    assert (thumbnail.size, thumbnail.getpixel((5, 5)), file["content_type"]) == ((64, 48), (255, 99, 71), "image/png")
    assert failed["failure"] == {"type": "HTTPError", "message": "HTTP Error 404: Not Found"}
"""
"""A test of the README's task, and what people write: no types, no docstrings, a library without types."""


def test_the_task_in_the_readme_does_what_it_says_and_lint_takes_what_people_write(bake: Bake) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [task] = re.findall(r"After, thumbnails.*?```python\n(.*?)```", readme, re.DOTALL)
    project = bake()
    (project / "task.py").write_text(task, encoding="utf-8")
    (project / "tests" / "test_task.py").write_text(NATURAL.lstrip(), encoding="utf-8")
    make(project, "lint", "test-all", "TESTS=tests/test_task.py")


def test_the_settings_in_env_are_read_by_what_runs_the_worker_and_by_no_test(bake: Bake) -> None:
    project = bake()
    (project / ".env").write_text("ITEM_TIMEOUT=soon\n", encoding="utf-8")
    with pytest.raises(AssertionError):
        make(project, "run")
    make(project, "test")


def test_an_installation_that_was_interrupted_begins_anew(bake: Bake) -> None:
    project = bake()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", project / ".venv"], check=True)
    make(project, "run")
