"""medsora.app.page, medsora.app.__main__, medsora.app.form: the page in a real headless Chromium: click, wait
for videos that play, save, compare, type nonsense.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medsora.app.models import Models
from medsora.data.reading.video_io import probe
from medsora.data.sheet import save_image
from medsora.errors import NonFiniteVideo
from tests.support.endogen import tiny_tokenizer as tokens
from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S
from tests.support.reserved_port import reserve_port
from tests.support.tiny_pipeline import write_conditional, write_run

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-dev-shm-usage",  # containers often have little of it
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(write_run(tmp_path_factory.mktemp("runs") / "mine" / "dit-tiny")) as address:
        yield address


@contextmanager
def served(*models: Path) -> Iterator[str]:
    if find_spec("gradio") is None:
        pytest.skip("Gradio is not installed (pip install 'medsora[app]')")
    held = reserve_port()
    port = held.getsockname()[1]
    command = [sys.executable, "-u", "-m", "medsora.app", "--port", str(port)]
    for model in models:
        command += ["--model", str(model)]
    server = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    try:
        assert f"open http://127.0.0.1:{port}" in server.stdout.readline()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()  # leaving in order takes longer than anybody's patience on a busy machine
        server.wait()
        held.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("there is no Chromium with its chromedriver here")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    with tempfile.TemporaryDirectory() as profile:
        for flag in [*FLAGS, f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        chrome = started(webdriver, options, driver)
        try:
            yield chrome
        finally:
            chrome.quit()


def started(webdriver: Any, options: Any, driver: str) -> Any:
    """Start Chromium, whose driver gives itself less time for it than a busy machine may need."""
    from selenium.common.exceptions import WebDriverException

    for _ in range(3):
        try:
            return webdriver.Chrome(options=options, service=webdriver.chrome.service.Service(driver))
        except WebDriverException as error:
            why = str(error).splitlines()[0]
    pytest.skip(f"Chromium does not start here: {why}")


@pytest.fixture
def page(browser: Any, address: str) -> Page:
    return Page(browser, address)


class Page:
    """The few things that a visitor does."""

    def __init__(self, browser: Any, address: str) -> None:
        self.browser = browser
        browser.get(address)
        self.until("return document.querySelector('#sample') !== null")

    def until(self, script: str, *arguments: str) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, PATIENCE_S).until(
            lambda browser: browser.execute_script(script, *arguments)
        )

    def type(self, selector: str, text: str) -> None:
        from selenium.webdriver.common.keys import Keys

        (field,) = [f for f in self.browser.find_elements("css selector", selector) if f.is_displayed()]
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(Keys.DELETE, text, Keys.TAB)

    def click(self, selector: str) -> None:
        (button,) = [b for b in self.browser.find_elements("css selector", selector) if b.is_displayed()]
        button.click()

    def choose(self, selector: str, words: str) -> None:
        """Choose the entry of a list that begins with `words`."""
        self.click(f"{selector} input")
        entry = (
            "const e = [...document.querySelectorAll('[role=option]')].find(x => "
            "x.getAttribute('aria-label').startsWith(arguments[0]));"
        )
        self.until(f"{entry} return e !== undefined", words)
        self.browser.execute_script(
            f"{entry} e.dispatchEvent(new MouseEvent('mousedown', {{bubbles: true}}))", words
        )

    def shown(self, selector: str) -> bool:
        return any(x.is_displayed() for x in self.browser.find_elements("css selector", selector))

    def playing(self, place: str, count: int) -> list[float]:
        """Wait until `count` videos play in `place`; return their widths in pixels of the file."""
        ready = (
            f"const v = [...document.querySelectorAll('{place} video')];"
            f"const all = v.length === {count};"
            "return all && v.every(x => x.readyState >= 3 && !x.paused && x.currentTime > 0)"
            " ? v.map(x => x.videoWidth) : null"
        )
        return self.until(ready)


def test_sampling_ends_in_playing_videos_that_can_be_saved(page: Page, tmp_path: Path) -> None:
    page.type(".steps input", "3")
    page.type("#videos input", "3")
    page.type("#seed input", "5")
    page.click("#sample")
    assert page.playing("#grid", 3) == [16, 16, 16]
    captions = page.until(
        "return [...document.querySelectorAll('#grid figcaption span')].map(x => x.textContent)"
    )
    assert captions == ["seed 5", "seed 6", "seed 7"]
    link = page.until("return document.querySelector('#grid figcaption a').href")
    (tmp_path / "saved.mp4").write_bytes(base64.b64decode(link.partition(",")[2]))
    assert probe(tmp_path / "saved.mp4").metadata["comment"].startswith("synthetic")
    assert "3 videos in" in page.until("return document.querySelector('#summary').textContent")
    page.until("return !document.querySelector('button#download, #download button').disabled")


def test_two_checkpoints_play_side_by_side(page: Page) -> None:
    page.until("return [...document.querySelectorAll('[role=tab]')].length === 2")
    page.browser.execute_script("document.querySelectorAll('[role=tab]')[1].click()")
    page.until("return document.querySelector('#compare')?.offsetParent !== null")
    page.type(".steps input", "2")
    page.click("#compare")
    page.playing("#pair", 2)
    captions = page.until(
        "return [...document.querySelectorAll('#pair figcaption span')].map(x => x.textContent)"
    )
    assert captions == ["mine/dit-tiny, step 10, seed 0", "mine/dit-tiny, step 5, seed 0"]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        (".steps input", "0", "The steps must be a whole number from 1 to 1,000, not 0."),
        ("#seed input", "-3", "The seed must be"),
        ("#videos input", "99", "The number of videos must be a whole number from 1 to 16, not 99."),
        ("#videos input", "", "The number of videos must be"),
    ],
)
def test_nonsense_is_answered_with_a_sentence(page: Page, field: str, value: str, words: str) -> None:
    page.type(field, value)
    page.click("#sample")
    page.until(f"return document.body.textContent.includes({words!r})")
    assert not page.browser.find_elements("css selector", "#grid video")


def test_a_model_without_labels_shows_no_fields_for_them(page: Page) -> None:
    assert page.shown("#model")
    assert not any(
        page.shown(f"#sample-{field}, #left-{field}") for field in ("label", "guidance", "first-frame")
    )


def test_a_label_and_a_first_frame_are_requested(browser: Any, tmp_path: Path) -> None:
    save_image(tmp_path / "picture.png", np.full((32, 16, 3), 120, np.uint8))
    plain, folder = (
        write_run(tmp_path / "mine" / "dit-tiny", steps=(5,)),
        write_conditional(tmp_path / "conditional"),
    )
    with served(folder, plain) as address:
        page = Page(browser, address)
        assert page.shown("#sample-label")
        page.until("return document.querySelector('#sample-guidance input[type=range]').disabled")
        page.choose("#sample-label", "polyp")
        page.until("return !document.querySelector('#sample-guidance input[type=range]').disabled")
        upload = browser.find_element("css selector", "#sample-first-frame input[type=file]")
        (tmp_path / "text.png").write_text("no picture")
        upload.send_keys(str(tmp_path / "text.png"))
        page.until("return document.body.textContent.includes('its content is no picture')")
        page.until("return document.querySelector('#sample-first-frame input[type=file]') !== null")
        upload = browser.find_element("css selector", "#sample-first-frame input[type=file]")
        upload.send_keys(str(tmp_path / "picture.png"))
        page.until("return document.querySelector('#sample-first-frame img') !== null")
        page.type(".steps input", "2")
        page.type("#videos input", "2")
        page.click("#sample")
        page.playing("#grid", 2)
        summary = page.until("return document.querySelector('#summary').textContent")
        assert ", polyp, guidance 2, first frame given." in summary
        page.choose("#model", "mine/dit-tiny")
        page.until("return document.querySelector('#sample-label')?.offsetParent == null")
        assert not page.shown("#sample-first-frame")
        page.click("#sample")  # a hidden field is no longer used
        summary = page.until(
            "const t = document.querySelector('#summary').textContent; return t.includes('mine') ? t : null"
        )
        assert "polyp" not in summary


def test_fields_are_those_of_the_kind_of_model(browser: Any, tmp_path: Path) -> None:
    coded = tokens.write_run(tmp_path / "coded" / "endogen-tiny", steps=(4,))
    plain = write_run(tmp_path / "mine" / "dit-tiny", steps=(5,))
    with served(coded, plain) as address:
        page = Page(browser, address)
        assert page.shown("#sample-temperature")
        assert not page.shown(".steps")
        page.choose("#sample-label", "polyp")
        page.type("#sample-top-k input", "9")
        page.type("#videos input", "1")
        page.click("#sample")
        assert page.playing("#grid", 1) == [32]
        page.choose("#model", "mine/dit-tiny")
        page.until("return document.querySelector('#sample-temperature')?.offsetParent == null")
        page.until("return document.querySelector('.steps')?.offsetParent != null")


def test_a_model_that_writes_codes_has_fields_of_its_own_and_samples_by_them(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="Gradio is not installed")
    models = Models([str(tokens.write_run(tmp_path / "coded" / "endogen-tiny", steps=(4,)))], "cpu")
    page = import_module("medsora.app.page").build_page(models)
    visible = {block.elem_id: block.visible for block in page.blocks.values() if hasattr(block, "elem_id")}
    for name in ("label", "guidance", "temperature", "top-k", "top-p"):
        assert visible[f"sample-{name}"], name
    assert not visible["sample-first-frame"]
    steps = [block for block in page.blocks.values() if "steps" in (getattr(block, "elem_classes", 0) or [])]
    assert [block.visible for block in steps] == [False, True], (
        "in the comparison another model may take them"
    )
    (sample,) = (event.fn for event in page.fns.values() if event.name == "sample")
    heard = []
    fields = ("ddim", 50, 3, 1, "polyp", 2, 0.5, 9, 0.75, None)
    grid, summary, _ = sample(models.names[0], lambda part, desc: heard.append(desc), *fields)
    assert heard[-1] == "writing, code 64 of 64"
    assert grid.count("<video") == 1
    assert "1 video in" in summary
    assert summary.endswith("coded/endogen-tiny, step 4, polyp, guidance 2.")


def test_what_is_not_finite_is_a_sentence() -> None:
    gradio = pytest.importorskip("gradio", reason="Gradio is not installed")
    page = import_module("medsora.app.page")
    with pytest.raises(gradio.Error, match="frames are NaN"), page._errors_shown():
        raise NonFiniteVideo("the frames are NaN.")


def test_another_host_and_a_large_upload_are_refused_in_one_line(address: str) -> None:
    place = address.removeprefix("http://")
    for headers, status, words in (
        ({"Host": place}, 200, b"<html"),
        ({"Host": "rebound.example"}, 421, b"does not answer under that name"),
        ({"Host": place, "Origin": address}, 200, b"<html"),
        ({"Host": place, "Origin": "http://stranger.example"}, 403, b"from other web pages"),
        ({"Host": place, "Content-Length": "400000000"}, 413, b"at most 20 MB"),
    ):
        connection = HTTPConnection(place, timeout=PATIENCE_S)
        method, path = ("POST", "/gradio_api/upload") if status == 413 else ("GET", "/")
        connection.putrequest(method, path, skip_host=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        assert answer.status == status
        assert words in answer.read()
        connection.close()


def test_nothing_is_requested_from_other_hosts(page: Page, address: str) -> None:
    requested = page.until(
        "return performance.getEntriesByType('resource').map(x => x.name).filter(x => !x.startsWith('data:'))"
    )
    assert requested
    assert [name for name in requested if not name.startswith(address)] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "there is no folder phantom"),
        (["--model", "nowhere/at/all"], "there is no folder nowhere/at/all"),
        (["--model", "nowhere/at/all", "--port", "0"], "--port is 0"),
    ],
)
def test_bad_arguments_end_with_status_2(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from medsora.app.__main__ import main
    from medsora.config import shipped
    from medsora.errors import BadInput

    if find_spec("gradio") is None:
        pytest.skip("Gradio is not installed (pip install 'medsora[app]')")
    monkeypatch.setattr(shipped, "models_folder", lambda: tmp_path)
    monkeypatch.setattr(sys, "argv", ["medsora.app", *arguments])
    with pytest.raises(BadInput, match=words):
        main()
