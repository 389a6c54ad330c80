"""The local endpoint's page in a real browser: Chromium without a window, driven by its own ChromeDriver."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from tests.conftest import Bake, required

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module", autouse=True)
def browser() -> None:
    if not (BROWSER and DRIVER):
        required("The local endpoint's page is not tested: install Chromium and its chromedriver.")


TASK = '''
import os
from pathlib import Path
from typing import Any, Literal
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field


class Box(BaseModel):
    left: int = 0


class Input(BaseModel):
    """Does what its items say."""

    model_config = ConfigDict(extra="forbid")
    items: list[str] = Field(description="What to do.")
    mood: Literal["kind", "cruel"] = "kind"
    width: int = Field(256, ge=1)
    loud: bool = False
    crop: Box | None = None
    note: str = "none"
    seed: int = 0
    shift: float = 1.5
    any: Any = None


def load() -> None:
    pass


def process(item: str, job: Input) -> Any:
    if item.startswith("read "):
        return Path(item.removeprefix("read ")).read_text()
    if item == "fail":
        raise ValueError("as it was told")
    if item.startswith("noise "):
        width = int(item.removeprefix("noise "))
        return {"image": Image.frombytes("RGB", (width, 1000), os.urandom(width * 3000)), "seed": 7}
    if item == "files":
        red = Image.new("RGB", (300, 200), "crimson")
        return {"images": [red, red.rotate(45)], "text": b"x" * 3, "page": b"<svg onload=alert(1)/>", "seed": 1}
    return {"item": item, **job.model_dump(exclude={"items"}, exclude_defaults=True)}
'''
GROWING = """
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from pydantic import BaseModel


class Input(BaseModel):
    items: list[str]


def load() -> None:
    pass


def process(item: str, job: Input) -> Iterator[Any]:
    if item == "plain":
        yield {"done": True}
        return
    for word in ("Once ", "upon ", "<b>a</b> "):
        yield word
    yield Path(item).read_text()
"""
HOSTILE = """<img src=x onerror="document.title='taken'"><script>document.title='taken'</script>"""
IDLE = ["--", sys.executable, "-c", "import signal; signal.pause()"]


class Page:
    """The page at ``url``, as a person meets it."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver = driver
        self.url = url
        driver.get(url)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        return [element.text for element in self.driver.find_elements(By.CSS_SELECTOR, selector)]

    def field(self, label: str) -> WebElement:
        """Return the control with this label."""
        named = self.driver.find_element(By.XPATH, f"//label[.='{label}']").get_attribute("for")
        return self.driver.find_element(By.ID, str(named))

    def write(self, label: str, text: str) -> None:
        self.field(label).clear()
        self.field(label).send_keys(text)

    @contextmanager
    def new_job(self) -> Iterator[None]:
        """Wait for a job that is submitted within, which the page shows first."""
        known = self.texts(".id")
        yield
        self.until(lambda: not set(self.texts(".id")[:1]) <= set(known))

    def run(self) -> None:
        with self.new_job():
            self.one("#run").click()

    def until(self, condition: Callable[[], Any]) -> None:
        unready = (NoSuchElementException, StaleElementReferenceException)
        WebDriverWait(self.driver, 60, 0.1, unready).until(lambda _: condition())

    def until_live(self) -> None:
        self.until(lambda: self.one("#connection").text == "Live" and self.one("#run").is_enabled())

    def until_status(self, status: str) -> None:
        """Wait until the latest job has this status."""
        self.until(lambda: self.one("#jobs .word").text == status)


@contextmanager
def served(project: Path, *arguments: str, **env: str) -> Iterator[str]:
    """Serve the project as a person would; yield the page's address, as it is printed."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RUNPOD_")}
    with subprocess.Popen(
        [sys.executable, "-m", "aggregating_worker", "serve", "--port", "0", *arguments],
        cwd=project,
        env={**bare, **env},
        stdout=subprocess.PIPE,
        text=True,
    ) as endpoint:
        assert endpoint.stdout is not None
        address = next(line.split()[1] for line in endpoint.stdout if line.startswith("Page"))
        log = threading.Thread(target=endpoint.stdout.read)  # the workers must not wait for a reader
        log.start()
        try:
            yield address
        finally:
            endpoint.terminate()
            log.join()


@pytest.fixture(scope="module")
def project(bake: Bake) -> Path:
    folder = bake()
    (folder / "task.py").write_text(TASK)
    (folder / "test_input.json").write_text(json.dumps({"input": {"items": ["one", "two"], "width": 9}}))
    return folder


@pytest.fixture(scope="module")
def url(project: Path) -> Iterator[str]:
    with served(project) as address:
        yield address


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    assert BROWSER, "Install Chromium."
    assert DRIVER, "Install Chromium's chromedriver."
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    options.add_argument("--headless=new")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.add_argument("--disable-dev-shm-usage")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium has no sandbox for root
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield chrome
    chrome.quit()


@pytest.fixture
def page(driver: webdriver.Chrome, url: str) -> Iterator[Page]:
    """Open the page; whatever the test did, nothing went wrong in it, and it asked nobody but its endpoint."""
    driver.get_log("browser")  # type: ignore[no-untyped-call]  # what went before
    opened = Page(driver, url)
    opened.until_live()
    yield opened
    assert driver.get_log("browser") == []  # type: ignore[no-untyped-call]
    asked = driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(address.startswith((url, "data:")) for address in asked)


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Path]:
    """Keeps an item busy until the test writes to it, or is over."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    yield path
    os.close(os.open(path, os.O_RDWR))


def test_a_job_from_the_form_shows_each_result_as_it_comes(page: Page, fifo: Path) -> None:
    page.write("items", f"{HOSTILE}\nfail\nread {fifo}\nlast")
    page.run()
    page.until(lambda: len(page.texts(".results li")) == 2)
    assert page.one("#jobs .word").text == "in progress"
    assert page.one("#jobs .tally").text == "2 of 4 results"
    page.until(lambda: page.one("[data-count='workers.running']").text == "1")
    fifo.write_text("what was read")
    page.until_status("completed")
    assert page.texts(".outcome") == ["✓ ok", "✕ failed", "✓ ok", "✓ ok"]
    assert page.texts(".index") == ["0", "1", "2", "3"]
    shown = page.texts(".text")
    assert json.loads(shown[0])["item"] == HOSTILE
    assert shown[1:3] == ["ValueError: as it was told", "what was read"]
    assert page.one("#jobs .failures").text == "1 failed"
    assert page.driver.title == "Local endpoint"
    assert page.texts("img") == []
    page.until(lambda: page.one("[data-count='jobs.completed']").text != "0")


def test_the_form_has_a_field_for_each_part_of_the_input(page: Page) -> None:
    assert page.one("#about").text == "Does what its items say."
    assert page.field("items").get_property("value") == "one\ntwo"
    assert page.field("width").get_property("value") == "9"
    assert page.field("width").get_attribute("min") == "1"
    assert page.field("note").get_attribute("placeholder") == 'default: "none"'
    assert [option.text for option in Select(page.field("mood")).options] == ['default: "kind"', "kind", "cruel"]
    described = page.one(f"#{page.field('items').get_attribute('aria-describedby')}")
    assert described.text == "What to do. One per line. Required."
    page.write("items", "only")
    Select(page.field("mood")).select_by_visible_text("cruel")
    Select(page.field("loud")).select_by_visible_text("true")
    page.write("crop", '{"left": 3}')
    with page.new_job():
        page.field("crop").send_keys(Keys.CONTROL, Keys.ENTER)
    page.until_status("completed")
    expected = {"item": "only", "mood": "cruel", "width": 9, "loud": True, "crop": {"left": 3}}
    assert json.loads(page.one(".text").text) == expected


def test_numbers_are_sent_as_they_were_typed(page: Page) -> None:
    page.write("seed", "6687881544318117707")
    page.write("shift", "-0.0")
    page.write("width", "0012")
    page.write("any", '{"id": 12345678901234567890123, "x": [-0.0, 1.0]}')
    for _ in range(2):  # as they are, and when they were JSON meanwhile
        page.run()
        page.until_status("completed")
        page.until(lambda: page.texts("#jobs > :first-child .text"))
        told = page.one("#jobs > :first-child .text").text
        assert '"seed": 6687881544318117707' in told
        assert '"shift": -0.0' in told
        assert '"width": 12' in told
        assert '"any": {"id": 12345678901234567890123, "x": [-0.0, 1.0]}' in told
        page.one("#edit-json").click()
        assert "6687881544318117707" in str(page.field("input, as JSON").get_property("value"))
        page.one("#edit-json").click()
        assert page.field("seed").get_property("value") == "6687881544318117707"


def test_the_example_of_the_project_keeps_its_numbers(project: Path, driver: webdriver.Chrome) -> None:
    before = (project / "test_input.json").read_text()
    (project / "test_input.json").write_text('{"input": {"items": ["a"], "seed": 6687881544318117707, "shift": -0.0}}')
    try:
        with served(project, "--workers", "0") as address:
            page = Page(driver, address)
            page.until_live()
            assert page.field("seed").get_property("value") == "6687881544318117707"
            assert page.field("shift").get_property("value") == "-0.0"
            assert '"seed": 6687881544318117707' in str(page.one("#json").get_property("value"))
    finally:
        (project / "test_input.json").write_text(before)


@pytest.mark.parametrize(("label", "typed"), [("any", "NaN"), ("any", "1e400"), ("any", "[-1e999]"), ("any", "01")])
def test_a_number_that_is_none_is_refused_with_a_sentence(page: Page, label: str, typed: str) -> None:
    page.write(label, typed)
    page.one("#run").click()
    page.until(lambda: page.one("#refusal").text.startswith(f"{label} is not JSON: "))


@pytest.mark.parametrize(("typed", "sent"), [("1e400", False), ("-", False), ("7", True), (".5", True), ("1e3", True)])
def test_a_field_for_a_number_takes_no_other(page: Page, typed: str, sent: bool) -> None:
    page.write("shift", typed)
    if not sent:
        page.one("#run").click()
        assert page.one("#refusal").text == "shift: Please enter a number."
    page.one("#edit-json").click()
    if sent:
        assert '"shift": ' in str(page.field("input, as JSON").get_property("value"))
    else:
        assert page.one("#refusal").text == "shift is no number that can be sent."
        assert page.one("#fields").is_displayed()


def test_the_input_can_be_written_as_json_and_back(page: Page) -> None:
    page.one("#edit-json").click()
    assert json.loads(str(page.field("input, as JSON").get_property("value"))) == {"items": ["one", "two"], "width": 9}
    page.write("input, as JSON", '{"items": [')
    page.one("#run").click()
    page.until(lambda: "JSON" in page.one("#refusal").text)
    page.write("input, as JSON", '{"items": ["one\\nwith two lines"], "mood": "odd"}')
    page.one("#edit-json").click()
    assert json.loads(str(page.field("items").get_property("value"))) == ["one\nwith two lines"]
    assert page.field("mood").get_property("value") == "odd"
    page.one("#edit-json").click()
    page.write("input, as JSON", '{"items": ["one"], "unknown": 1}')
    page.one("#edit-json").click()
    assert page.one("#refusal").text == "The form has no field for a part of this."
    page.run()
    page.until_status("failed")
    assert "there is no field unknown" in page.one("#jobs .error").text


def test_a_field_that_is_no_json_is_named(page: Page) -> None:
    page.write("crop", "{left")
    page.one("#run").click()
    page.until(lambda: page.one("#refusal").text.startswith("crop is not JSON"))


def drawn(page: Page) -> list[Any]:
    """Return the sizes of the pictures that the browser has drawn."""
    return [
        page.driver.execute_script("return [arguments[0].naturalWidth, arguments[0].naturalHeight]", picture)
        for picture in page.driver.find_elements(By.CSS_SELECTOR, "#jobs > :first-child img:not([hidden])")
    ]


def saved(page: Page, folder: Path, name: str) -> bytes:
    """Save a file of the latest job as a person would; return what is in it."""
    behavior = {"behavior": "allow", "downloadPath": str(folder)}
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", behavior)
    page.one(f"#jobs > :first-child a[download='{name}']").click()
    page.until(lambda: (folder / name).is_file())
    return (folder / name).read_bytes()


def test_pictures_are_shown_and_every_file_can_be_saved_under_its_own_name(page: Page, tmp_path: Path) -> None:
    page.write("items", "one\nfiles\nfail")
    page.run()
    page.until_status("completed")
    page.until(lambda: drawn(page) == [[300, 200], [300, 200]])
    assert page.texts("#jobs > :first-child figcaption a") == ["1-0.png", "1-1.png", "1-2.bin", "1-3.bin"]
    assert page.texts("#jobs > :first-child .size")[2] == "3 bytes, application/octet-stream"
    assert json.loads(page.texts("#jobs > :first-child .text")[1])["images"][0].keys() == {"content_type", "bytes"}
    assert saved(page, tmp_path, "1-1.png").startswith(b"\x89PNG")
    assert saved(page, tmp_path, "1-2.bin") == b"xxx"
    assert saved(page, tmp_path, "1-3.bin") == b"<svg onload=alert(1)/>"


def test_a_picture_of_3_mb_which_is_too_large_for_the_stream_is_shown_whole(page: Page, tmp_path: Path) -> None:
    page.write("items", "noise 20\nnoise 1000\none")
    page.run()
    page.until_status("completed")
    page.until(lambda: drawn(page) == [[20, 1000], [1000, 1000]])
    assert page.texts("#jobs > :first-child .index") == ["0", "1", "2"]
    assert len(saved(page, tmp_path, "1-0.png")) > 3_000_000


def test_an_item_is_seen_growing(project: Path, driver: webdriver.Chrome, fifo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "growing"
    shutil.copytree(project, folder, symlinks=True, ignore=shutil.ignore_patterns(".venv"))
    (folder / "task.py").write_text(GROWING)
    (folder / "test_input.json").write_text('{"input": {"items": []}}')
    with served(folder) as address:
        page = Page(driver, address)
        page.until_live()
        page.write("items", f"plain\n{fifo}\nplain")
        page.run()
        page.until(lambda: page.texts("[data-growing] .text") == ["Once upon <b>a</b> ", '{"done": true}'])
        assert page.texts(".results .index") == ["0", "1", "2"]
        assert page.texts("[data-growing] .outcome") == ["◐ so far", "◐ so far"]
        assert page.one("#jobs .tally").text == "1 of 3 results"
        fifo.write_text("time")
        page.until_status("completed")
        assert page.texts("[data-growing]") == []
        assert page.texts(".results .index") == ["0", "1", "2"]
        assert page.texts(".text") == ['[{"done": true}]', "Once upon <b>a</b> time", '[{"done": true}]']


def test_a_running_job_can_be_cancelled(page: Page, fifo: Path) -> None:
    page.write("items", f"read {fifo}")
    page.run()
    page.until_status("in progress")
    page.one(".cancel").click()
    page.until_status("cancelled")
    assert not page.one(".cancel").is_displayed()


def test_a_long_job_leaves_the_page_quick(page: Page) -> None:
    items = "\n".join(f"{number}: {'x' * 500}" for number in range(10_000))
    page.driver.execute_script("arguments[0].value = arguments[1]", page.field("items"), items)
    page.run()
    page.until_status("completed")
    assert page.one("#jobs .tally").text == "10,000 results"
    assert len(page.driver.find_elements(By.CSS_SELECTOR, "#jobs > :first-child li")) == 100
    assert page.one("#jobs .earlier").text.startswith("9,900 earlier results")


def test_jobs_of_other_callers_and_jobs_from_before_are_shown(page: Page) -> None:
    job = {"input": {"items": ["from elsewhere"]}}
    with page.new_job():
        answer = httpx2.post(f"{page.url}v2/local/run", json=job, headers={"Authorization": "Bearer any"}).json()
    page.until_status("completed")
    page.driver.refresh()
    page.until(lambda: page.one("#jobs .id").text == answer["id"])
    assert "from elsewhere" in page.one(".text").text


def test_batches_have_a_tab_of_their_own(page: Page) -> None:
    headers = {"Authorization": "Bearer any"}
    with httpx2.Client(base_url=f"{page.url}v2/local", headers=headers) as caller:
        batch_id = caller.post("/batch", json=[{"input": {"items": ["one"]}}, {"input": {"unknown": 1}}]).json()["id"]
        assert not page.one("#batches").is_displayed()
        page.one("#jobs-tab").send_keys(Keys.ARROW_RIGHT)
        page.until(lambda: page.texts("#batches .word") == ["draft"])
        assert page.texts("#batches .id") == [batch_id]
        assert page.one("#batches-tab").get_attribute("aria-selected") == "true"
        assert not page.one("#jobs-shown").is_displayed()
        caller.put(f"/batch/{batch_id}", json={"name": HOSTILE}).raise_for_status()
        caller.post(f"/batch/{batch_id}/finalize").raise_for_status()
        page.until(lambda: page.texts("#batches .word") == ["completed"])
        assert page.texts("#batches .id") == [HOSTILE]
        assert page.texts("#batches .tally") == ["2 of 2 requests"]
        assert page.texts("#batches .failures") == ["1 failed"]
        assert not page.one("#batches .cancel").is_displayed()
        caller.post("/batch", json=[{"input": {"items": ["two"]}}])
        page.until(lambda: page.texts("#batches .word") == ["draft", "completed"])
        page.one("#batches .cancel").click()
        page.until(lambda: page.texts("#batches .word") == ["cancelled", "completed"])
        page.one("#jobs-tab").click()
        assert page.driver.title == "Local endpoint"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_telephone_in_both_schemes(page: Page, scheme: str) -> None:
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    page.write("items", "word" * 200)
    page.run()
    page.until_status("completed")
    assert page.driver.execute_script("return document.documentElement.scrollWidth") == 360
    ground = page.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (int(ground.removeprefix("rgb(").split(",")[0]) < 128) == (scheme == "dark")
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_an_endpoint_with_a_key_asks_for_it(project: Path, driver: webdriver.Chrome) -> None:
    with served(project, *IDLE, RUNPOD_API_KEY="right") as address:
        page = Page(driver, address)
        page.until(lambda: page.one("#key").is_displayed())
        assert "right" not in driver.page_source
        page.write("API key", "wrong")
        page.field("API key").send_keys(Keys.ENTER)
        page.until(lambda: page.one("#key-refused").text == "The endpoint does not take this key.")
        page.write("API key", "right")
        page.field("API key").send_keys(Keys.ENTER)
        page.until_live()
        assert page.one("#about").text.endswith("Write the input as JSON.")
        page.write("input, as JSON", "12345678901234567890")
        page.run()
        page.until_status("in queue")


def test_the_page_says_when_the_endpoint_is_gone_and_comes_back_with_it(
    project: Path, driver: webdriver.Chrome
) -> None:
    with served(project, *IDLE) as address:
        page = Page(driver, address)
        page.until_live()
    page.until(lambda: page.one("#connection").text.startswith("No answer"))
    with served(project, "--port", address.rstrip("/").rpartition(":")[2], *IDLE):
        page.until_live()
