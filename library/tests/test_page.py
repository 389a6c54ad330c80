"""What a browser is served: the page, its form, its feed. It takes nothing from a caller, and it is bounded."""

import asyncio
import contextlib
import itertools
import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregating_worker.local import LocalEndpoint, feed, form
from aggregating_worker.local.body import Body
from aggregating_worker.local.feed import FILES, JOBS, PREVIEW, RESULTS, Feed, preview
from aggregating_worker.local.form import Form
from aggregating_worker.local.job import Job
from aggregating_worker.local.queue import Queue
from tests.conftest import LIBRARY, Caller, MakeWorker, Serve, off_runpod

IDLE = [sys.executable, "-c", "import signal; signal.pause()"]
PARTS = {"/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript", "/form.js": "text/javascript"}
FETCHED = ("/form", "/feed")


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    """Serve an endpoint whose only worker is the test."""
    with LocalEndpoint(IDLE) as endpoint, Caller(endpoint, tmp_path_factory.mktemp("log")) as caller:
        yield caller


class Page:
    """What an open page has been told."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = map(json.loads, lines)
        self.counts: dict[str, Any] = next(self._lines)
        self.jobs: dict[str, dict[str, Any]] = {}

    def until(self, job_id: str, **state: Any) -> dict[str, Any]:
        """Read on until the job is in ``state``; return all that is known of it."""
        for _ in range(1_000):
            known = self.jobs.get(job_id, {})
            if known and all(known.get(key) == value for key, value in state.items()):
                return known
            news = next(self._lines)
            if "id" in news:
                before = [] if news["fresh"] else self.jobs[news["id"]]["results"]
                self.jobs[news["id"]] = {**news, "results": before + news["results"]}
        raise AssertionError(known)


@contextlib.contextmanager
def open_page(endpoint: LocalEndpoint) -> Iterator[Page]:
    headers = {"Authorization": "Bearer any"}
    with httpx2.stream("GET", f"{endpoint.page_url}feed", headers=headers, timeout=60) as answer:
        lines = answer.raise_for_status().iter_lines()
        yield Page(itertools.chain([next(lines)], lines))  # from the first line on, it is told everything


def begun(caller: Caller) -> str:
    job_id = caller.run([1, 2, 3])
    assert caller.take()["id"] == job_id
    return job_id


@pytest.mark.parametrize(("path", "media_type"), PARTS.items())
def test_the_page_brings_everything_and_lets_nothing_in(quiet: Caller, path: str, media_type: str) -> None:
    answer = httpx2.get(quiet.endpoint.page_url.removesuffix("/") + path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(media_type)
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert not re.search(r"//[a-z]+\.|innerHTML|\son\w+=|style=", answer.text)


def routes() -> list[tuple[str, str]]:
    """Return the methods and paths of all routes."""
    app: Any = LocalEndpoint(IDLE)._app()
    while not hasattr(app, "routes"):
        app = app._app
    return [(route.method, route.path) for route in app.routes]


@pytest.mark.parametrize(
    "name",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:80"},
        {"Host": "localhost@evil.example"},
        {"Host": "["},
        {"Host": ""},
        {"Host": "a b"},
        {"Origin": "http://evil.example"},
        {"Origin": "https://127.0.0.1.evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
    ],
    ids=str,
)
def test_a_browser_led_here_by_another_name_or_site_gets_nothing(quiet: Caller, name: dict[str, str]) -> None:
    """On any route, with any key: what it would be answered else, and what it would change, is never looked at."""
    [worker] = quiet.endpoint.workers.running
    job_id = quiet.run([1])
    known = len(routes())
    assert known > 25
    for method, path in [*routes(), ("OPTIONS", "/v2/local/run")]:
        path = path.replace("{worker}", worker.id).replace("{job}", job_id)
        url = quiet.endpoint.page_url.removesuffix("/") + path
        for key in ("Bearer any", worker.secret):
            answer = quiet.http.request(method, url, headers={"Authorization": key, **name})
            assert answer.status_code == 403
            assert "127.0.0.1" in answer.json()["error"]
            assert "access-control-allow-origin" not in answer.headers
    assert quiet.post("/purge-queue").json()["removed"] == 1


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1:8000", "http://[::1]"])
def test_a_page_of_this_machine_may_call(quiet: Caller, origin: str) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    preflight = quiet.http.options("/run", headers={"Origin": origin, **asked})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == origin
    allowed = preflight.headers["access-control-allow-headers"].lower()
    assert "authorization" in allowed
    assert "content-type" in allowed
    answer = quiet.get("/health", headers={"Origin": origin})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8000", "[::1]:9"])
def test_the_page_has_the_names_of_this_machine(quiet: Caller, host: str) -> None:
    assert httpx2.get(quiet.endpoint.page_url, headers={"Host": host}).status_code == 200


def test_what_the_page_fetches_takes_the_key_that_was_set() -> None:
    with LocalEndpoint(IDLE, api_key="secret") as endpoint:
        page = httpx2.get(endpoint.page_url)
        assert page.status_code == 200
        assert "secret" not in page.text
        for path in FETCHED:
            url = endpoint.page_url.removesuffix("/") + path
            assert httpx2.get(url).status_code == 401
            assert httpx2.get(url, headers={"Authorization": "Bearer page"}).status_code == 401
            with httpx2.stream("GET", url, headers={"Authorization": "Bearer secret"}) as answer:
                assert answer.status_code == 200


def test_the_form_asks_for_the_tasks_own_input(make_worker: MakeWorker) -> None:
    folder = make_worker("hostile")
    found = asyncio.run(Form(folder, {}).read())
    assert found["schema"]["properties"].keys() == {"items", "option"}
    assert found["schema"]["required"] == ["items"]
    assert found["example"] == json.loads((folder / "test_input.json").read_text())["input"]


@pytest.mark.parametrize(
    ("task", "why"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("x = 1", "AttributeError"),
        ("import os; os._exit(0)", "ended the process"),
        ("import os; os.close(1); os.close(2); os.abort()", "ended the process"),
    ],
)
def test_a_task_without_a_readable_input_is_told_in_a_sentence(tmp_path: Path, task: str, why: str) -> None:
    (tmp_path / "task.py").write_text(task)
    found = asyncio.run(Form(tmp_path, {}).read())
    assert why in found["why"]
    assert found["example"] == {}


def test_a_task_that_is_not_imported_in_time_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form, "SECONDS", 0.1)
    (tmp_path / "task.py").write_text("import signal; signal.pause()")
    assert "took more than" in asyncio.run(Form(tmp_path, {}).read())["why"]


def test_a_task_may_print_start_threads_and_read_its_settings(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(
        "import os, subprocess, threading, time\n"
        "from pydantic import BaseModel\n"
        "print('loading'); subprocess.run(['echo', 'more'])\n"
        "threading.Thread(target=time.sleep, args=[600]).start()\n"
        "class Input(BaseModel):\n"
        "    size: int = int(os.environ['SIZE'])\n"
    )
    (tmp_path / "test_input.json").write_text('{"no": "input"}')
    found = asyncio.run(Form(tmp_path, {"SIZE": "7"}).read())
    assert found["schema"]["properties"]["size"]["default"] == 7
    assert found["example"] == {}


def test_another_command_has_no_form(quiet: Caller) -> None:
    found = httpx2.get(f"{quiet.endpoint.page_url}form", headers={"Authorization": "Bearer any"}).json()
    assert found.keys() == {"why", "example"}


def envelope(index: int, result: Any) -> dict[str, Any]:
    return {"index": index, "success": True, "result": result}


def test_a_page_is_told_each_result_as_it_comes(quiet: Caller) -> None:
    with open_page(quiet.endpoint) as page:
        assert page.counts.keys() == {"jobs", "workers", "batches", "form", "shown"}
        job_id = begun(quiet)
        assert page.until(job_id, status="IN_PROGRESS", count=0)["items"] == 3
        quiet.chunk(job_id, envelope(0, "a\nb"))
        assert page.until(job_id, count=1)["results"][0]["text"] == "a\nb"
        failed = {"index": 1, "success": False, "failure": {"type": "ValueError", "message": "no"}}
        stored = {"index": 2, "success": True, "result_url": "http://127.0.0.1/x", "bytes": 9}
        quiet.chunk(job_id, [failed, stored])
        assert page.until(job_id, count=3, failed=1)["final"] is False
        quiet.done(job_id, {"output": [envelope(0, "a\nb"), [failed, stored]]})
        results = page.until(job_id, status="COMPLETED", count=3, failed=1, final=True)["results"]
    assert [(result["index"], result["success"]) for result in results] == [(0, True), (1, False), (2, True)]
    assert results[1]["text"] == "ValueError: no"
    assert "http://127.0.0.1/x" in results[2]["text"]
    assert all(result["after"] is not None for result in results)


def test_whatever_a_worker_sends_is_shown(quiet: Caller) -> None:
    odd = ["text", ["a", "list"], None, {"index": "x", "success": 1}, {"index": -1, "success": False}]
    with open_page(quiet.endpoint) as page:
        streaming = begun(quiet)
        for output in odd:
            quiet.chunk(streaming, output)
        quiet.done(streaming, {"status": "IN_PROGRESS", "output": "half"})
        assert len(page.until(streaming, progress="half")["results"]) == len(odd)
        quiet.done(streaming, {"error": {"any": "JSON"}})
        page.until(streaming, status="FAILED", error='{"any": "JSON"}', progress=None)
        returning = begun(quiet)
        quiet.done(returning, {"output": {"only": "this"}})
        [result] = page.until(returning, status="COMPLETED")["results"]
        assert (result["text"], result["success"]) == ('{"only": "this"}', None)


def test_a_page_is_told_of_an_item_as_it_grows(quiet: Caller) -> None:
    with open_page(quiet.endpoint) as page:
        job_id = begun(quiet)
        quiet.chunk(job_id, {"index": 1, "parts": ["tok", "en"]})
        assert page.until(job_id, growing=[[1, "token"]])["count"] == 0
        quiet.chunk(job_id, {"index": 0, "parts": [{"a": 1}, "x" * PREVIEW]})
        assert page.until(job_id, growing=[[0, "x" * PREVIEW]])["results"] == []
        quiet.chunk(job_id, {"index": 0, "parts": [{"a": 1}]})
        page.until(job_id, growing=[[0, '{"a": 1}\n']])
        quiet.chunk(job_id, envelope(0, "whole"))
        known = page.until(job_id, count=1)
        assert (known["growing"], [result["text"] for result in known["results"]]) == ([], ["whole"])
        quiet.done(job_id, {"error": "stopped"})
        assert page.until(job_id, status="FAILED")["count"] == 1


def test_a_page_is_given_files_whole_however_long_they_are(quiet: Caller) -> None:
    def file(**where: str) -> dict[str, Any]:
        return {"content_type": "image/png", "bytes": 9, **where}

    large, stored = file(data="x" * 4_000_000), file(url="https://store/1-1.png")
    with open_page(quiet.endpoint) as page:
        job_id = begun(quiet)
        quiet.chunk(job_id, envelope(0, file(data="small")))
        quiet.chunk(job_id, envelope(2, "last"))
        page.until(job_id, count=2)
        output = [envelope(0, file(data="small")), envelope(1, {"a": [large, stored], "b": 1}), envelope(2, "last")]
        quiet.done(job_id, {"output": output})  # the large one was not on the stream
        first, second, last = page.until(job_id, status="COMPLETED", count=3)["results"]
    assert first["files"] == [{**file(data="small"), "name": "0-0.png"}]
    assert second["files"] == [{**large, "name": "1-0.png"}, {**stored, "name": "1-1.png"}]
    assert json.loads(second["text"]) == {"a": [file(), stored], "b": 1}
    assert last["files"] == []


def test_a_page_opened_late_sees_what_is_still_here(quiet: Caller) -> None:
    job_id = begun(quiet)
    results = [envelope(number, number) for number in range(3)]
    for result in results:
        quiet.chunk(job_id, result)
    with open_page(quiet.endpoint) as page:
        assert len(page.until(job_id, count=3)["results"]) == 3
    assert len(quiet.get(f"/stream/{job_id}").json()["stream"]) == 3
    with open_page(quiet.endpoint) as page:
        assert page.until(job_id, status="IN_PROGRESS")["results"] == []
        quiet.done(job_id, {"output": results})
        assert len(page.until(job_id, status="COMPLETED")["results"]) == 3


def test_a_callers_stream_is_complete_while_pages_are_open(serve: Serve) -> None:
    caller = serve("hostile", LOOKAHEAD="8")
    with open_page(caller.endpoint) as one, open_page(caller.endpoint) as other:
        job_id = caller.run([*range(500)])
        streamed = list(caller.stream(job_id))
        assert [result["index"] for result in streamed] == [*range(500)]
        assert streamed == caller.status(job_id)["output"]
        for page in (one, other):
            news = page.until(job_id, status="COMPLETED")
            assert (news["count"], news["failed"], news["results"][-1]["index"]) == (500, 0, 499)


def test_a_job_whose_worker_died_begins_anew_on_the_page(serve: Serve, fifo: Path) -> None:
    caller = serve("hostile")
    job_id = caller.run(["first", {"read": str(fifo)}])
    with open_page(caller.endpoint) as page:
        page.until(job_id, count=1)
        caller.endpoint.workers.running[0].process.send_signal(signal.SIGKILL)
        assert page.until(job_id, retries=1, status="IN_PROGRESS", count=1)["results"][0]["text"] == "first"
        fifo.write_text("second")
        results = page.until(job_id, status="COMPLETED")["results"]
    assert [result["text"] for result in results] == ["first", "second"]


def test_a_page_that_closes_leaves_nothing_behind(quiet: Caller) -> None:
    with open_page(quiet.endpoint) as page:  # named, for one that nobody holds closes at once
        assert page.counts
        assert quiet.endpoint.queue.watchers
    for _ in range(1_000):
        if not quiet.endpoint.queue.watchers:
            return
        quiet.get("/health")
    raise AssertionError("the closed page is still told the news")


@pytest.mark.usefixtures("interruptible")
def test_stopping_with_an_open_page_is_quiet() -> None:
    command = [sys.executable, "-m", "aggregating_worker", "serve", "--port", "0", "--", *IDLE]
    with subprocess.Popen(
        command, cwd=LIBRARY, env=off_runpod(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as served:
        assert served.stdout is not None
        page = next(line for line in served.stdout if line.startswith("Page")).split()[1]
        with httpx2.stream("GET", f"{page}feed", headers={"Authorization": "Bearer any"}, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            served.send_signal(signal.SIGINT)
            assert all(map(json.loads, lines))
        _, errors = served.communicate(timeout=30)
    assert (served.returncode, errors) == (0, "")


async def news_of(lines: AsyncIterator[str]) -> list[dict[str, Any]]:
    """Return the jobs in one lot of news: those between two lines with the counts."""
    jobs: list[dict[str, Any]] = []
    async for line in lines:
        news = json.loads(line)
        if "id" not in news:
            return jobs
        jobs.append(news)
    raise EOFError


def taken(queue: Queue, items: int = 0) -> Job:
    request = {"input": {"items": [0] * items}}
    job = queue.submit(Job.of("run", Body(request, json.dumps(request).encode())))
    job.status, job.worker, job.taken = "IN_PROGRESS", "mine", job.queued
    return job


def stream(queue: Queue, job: Job, output: Any) -> None:
    queue.stream(job, json.dumps({"output": output}).encode())


def test_a_page_is_told_no_more_than_a_person_can_look_at() -> None:
    async def scenario() -> None:
        queue = Queue()
        lines = Feed(queue, dict, lambda: False).lines()
        assert await news_of(lines) == []
        jobs = [taken(queue) for _ in range(2 * JOBS)]
        for number in range(10_000):
            stream(queue, jobs[0], {"index": number, "success": number % 2 == 0, "result": "x" * 10_000})
        news = await news_of(lines)
        assert [told["id"] for told in news] == [job.id for job in [*jobs[-JOBS + 1 :], jobs[0]]]
        shown = news[-1]
        assert (shown["count"], shown["failed"]) == (10_000, 5_000)
        assert [result["index"] for result in shown["results"]] == [*range(10_000 - RESULTS, 10_000)]
        assert all(len(result["text"]) < 2 * PREVIEW for result in shown["results"])
        pictures = {"content_type": "image/png", "bytes": 1, "data": "x" * (FILES // 4)}
        for number in range(10):
            stream(queue, jobs[0], pictures)
            for index in range(2 * RESULTS):
                stream(queue, jobs[0], {"index": index, "parts": ["x" * PREVIEW, number]})
        [shown] = await news_of(lines)
        assert ["data" in file for result in shown["results"] for file in result["files"]] == 6 * [False] + 4 * [True]
        assert [index for index, _ in shown["growing"]] == [*range(RESULTS, 2 * RESULTS)]
        assert all(len(text) == PREVIEW for _, text in shown["growing"])
        stream(queue, jobs[0], "one more")
        [shown] = await news_of(lines)
        assert [result["text"] for result in shown["results"]] == ["one more"]
        await lines.aclose()  # type: ignore[attr-defined]
        assert queue.watchers == []
        assert len(jobs[0].chunks) == 10_001 + 10 * (1 + 2 * RESULTS)

    asyncio.run(scenario())


def test_nothing_is_kept_for_a_page_that_has_stopped_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        queue = Queue()
        page = Feed(queue, dict, lambda: False)
        lines = page.lines()
        await news_of(lines)
        job = taken(queue)
        monkeypatch.setattr(feed, "PATIENCE", -1)
        stream(queue, job, "x")
        assert page._cards == {}
        with pytest.raises(EOFError):  # when it reads again, it is to connect again
            await news_of(lines)
        assert queue.watchers == []

    asyncio.run(scenario())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(deadline=None)
@given(JSON)
def test_a_preview_is_the_beginning_of_what_it_shows(content: Any) -> None:
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    shown = preview(content)
    assert shown == text if len(text) <= PREVIEW else shown.startswith(text[:PREVIEW] + " …")


def test_a_preview_of_anything_is_short() -> None:
    deep: list[Any] = []
    for _ in range(900):
        deep = [deep]
    for content in ("x" * 10**7, ["x" * 10**7], ["x"] * 10**7, {"x" * 10**7: 1}, deep, "\ud800" * 10**5):
        assert len(preview(content)) < PREVIEW + 100
    assert preview("x" * PREVIEW) == "x" * PREVIEW
    assert preview("x" * PREVIEW + "y") == "x" * PREVIEW + " … (the first 2,000 characters)"
