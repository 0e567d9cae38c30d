"""Opens the report in headless Chromium: layout, text, colour schemes, the two small scripts."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser.fixture_runs import write_runs
from tightgrad_lab import report

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PAGES = {"en": "index.html", "zh": "index.zh.html"}

# Overlaps and texts cut by the viewport, for each SVG that is shown. A pixel of slack is for rounding.
CHECK_SVG = """
() => [...document.querySelectorAll("svg")].filter((svg) => svg.getBoundingClientRect().width > 0).flatMap((svg) => {
  const frame = svg.getBoundingClientRect();
  const found = [];
  const texts = [...svg.querySelectorAll("text")].map((node) => [node.textContent, node.getBoundingClientRect()]);
  texts.forEach(([word, box], i) => {
    if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1
        || box.bottom > frame.bottom + 1) found.push(`cut: ${word}`);
    for (const [other, next] of texts.slice(i + 1)) {
      const across = Math.min(box.right, next.right) - Math.max(box.left, next.left);
      const up = Math.min(box.bottom, next.bottom) - Math.max(box.top, next.top);
      const lines = Math.min(box.height, next.height);
      if (across > 1 && up > 0.3 * lines) found.push(`overlap: ${word} / ${other}`);
    }
  });
  return found;
})
"""

CONTRAST = """
() => {
  const parse = (color) => color.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = (color) => {
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = parse(color).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const nodes = document.querySelectorAll(
    "p, a, h1, h2, h3, td, th, th button, dt, dd, code, figcaption, .verdict, .label, svg text");
  const low = new Set();
  for (const node of nodes) {
    const style = getComputedStyle(node);
    if (node.matches(".skip, nav .done")) continue;
    const own = style.backgroundColor;
    const back = own.startsWith("rgba(0, 0, 0, 0") ? paper : light(own);
    const front = light(node.closest("svg") ? style.fill : style.color);
    const ratio = (Math.max(back, front) + 0.05) / (Math.min(back, front) + 0.05);
    if (ratio < 4.5) low.add(`${node.tagName}.${node.className} ${ratio.toFixed(2)}`);
  }
  return [...low];
}
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if CHROMIUM is None:
        reason = "no Chromium on PATH; install the `chromium` package to run the browser tests"
        if os.environ.get("TIGHTGRAD_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=[1, 3], ids=["one seed", "three seeds"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    report.build(write_runs(root / "runs", seeds=request.param), root / "out")
    return root / "out"


class Opened:
    """A page, and what it asked of the network and said on the console."""

    def __init__(self, browser: Any, file: Path, width: int, scheme: str) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url}"))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(file.as_uri())
        self.page.evaluate("document.fonts.ready")


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("width", [380, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_whole(chromium: Any, built: Path, language: str, width: int, scheme: str) -> None:
    opened = Opened(chromium, built / PAGES[language], width, scheme)
    page = opened.page
    try:
        assert opened.complaints == []
        assert [url for url in opened.requests if not url.startswith(("file://", "data:"))] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CHECK_SVG) == []
        assert page.evaluate(CONTRAST) == []
        shown = page.locator("figure svg:visible")
        assert shown.count() == page.locator("figure").count() == 3
        for i in range(shown.count()):
            box = shown.nth(i).bounding_box()
            assert box["width"] > 300
            assert box["height"] > 150
        smallest = page.evaluate(
            "() => Math.min(...[...document.querySelectorAll('svg text')].map((t) => t.getBoundingClientRect().height)"
            ".filter((h) => h > 0))"
        )
        assert smallest > 9
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 28)"
        assert dark == (scheme == "dark")
    finally:
        page.close()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_tables_sort_by_value_both_ways(chromium: Any, built: Path, language: str) -> None:
    page = Opened(chromium, built / PAGES[language], 1400, "light").page
    read = "(n) => [...document.querySelectorAll('#table13 tbody tr')].map((r) => Number(r.cells[n].dataset.value))"
    try:
        for column in (1, 2):
            button = page.locator("#table13 thead button").nth(column)
            button.click()
            values = page.evaluate(read, column)
            assert values == sorted(values)
            assert page.locator("#table13 th[aria-sort]").get_attribute("aria-sort") == "ascending"
            button.press("Enter")
            assert page.evaluate(read, column) == sorted(values, reverse=True)
    finally:
        page.close()


def test_the_language_switch_leads_there_and_back(chromium: Any, built: Path) -> None:
    page = Opened(chromium, built / PAGES["en"], 380, "light").page
    try:
        page.locator("a.language").click()
        page.wait_for_url("**/index.zh.html")
        assert page.locator("html").get_attribute("lang") == "zh-CN"
        page.locator("a.language").click()
        page.wait_for_url("**/index.html")
    finally:
        page.close()


@pytest.mark.parametrize(("width", "is_open"), [(380, False), (1400, True)])
def test_contents_fold_on_a_phone_and_stay_in_view_on_a_desk(
    chromium: Any, built: Path, width: int, is_open: bool
) -> None:
    page = Opened(chromium, built / PAGES["en"], width, "light").page
    try:
        assert page.evaluate("document.getElementById('contents').open") is is_open
        page.evaluate("document.getElementById('chapter8').scrollIntoView({ behavior: 'instant' })")
        in_view = page.evaluate("document.querySelector('nav').getBoundingClientRect().bottom > 0")
        assert in_view is is_open
    finally:
        page.close()


def test_keyboard_reaches_the_content_and_the_wide_tables(chromium: Any, built: Path) -> None:
    page = Opened(chromium, built / PAGES["en"], 380, "light").page
    try:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        page.wait_for_function("location.hash === '#content'")
        scroll = page.locator("#table15 .scroll")
        scroll.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("document.querySelector('#table15 .scroll').scrollLeft > 0")
    finally:
        page.close()


def test_every_link_inside_the_page_has_a_target(chromium: Any, built: Path) -> None:
    page = Opened(chromium, built / PAGES["en"], 1400, "light").page
    dangling = "[...document.querySelectorAll('a[href^=\"#\"]')].filter((a) => !document.querySelector(a.hash)).length"
    try:
        assert page.evaluate(dangling) == 0
        assert page.evaluate("document.querySelectorAll('[id]').length") == page.evaluate(
            "new Set([...document.querySelectorAll('[id]')].map((n) => n.id)).size"
        )
    finally:
        page.close()


def test_prints_on_white_paper(chromium: Any, built: Path) -> None:
    page = Opened(chromium, built / PAGES["zh"], 1400, "dark").page
    try:
        page.emulate_media(media="print", color_scheme="dark")
        page.set_viewport_size({"width": 720, "height": 1000})
        assert page.evaluate("document.documentElement.scrollWidth") <= 720
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(36, 39, 44)"
        assert page.locator("nav").is_hidden()
        assert page.locator("#figure13 .wide").is_visible()
        assert page.pdf(format="A4").startswith(b"%PDF")
    finally:
        page.close()
