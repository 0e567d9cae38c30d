"""Opens the report in headless Chromium: layout, text, colour schemes, the two small scripts."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from browser.opened import CHECK_SVG, CONTRAST, Opened

pytestmark = pytest.mark.browser

PAGES = {"en": "book.html", "zh": "book.zh.html"}
AXES = ((1, 3), ("en", "zh"), (380, 1400), ("light", "dark"))
VIEWS = list(itertools.product(*AXES))
FEW = {(3, "en", 1400, "light"), (3, "zh", 380, "light"), (1, "zh", 1400, "dark"), (3, "en", 380, "dark")}
"""Of the views those that have each language, width and scheme with each of the others; the rest are slow."""


@pytest.fixture(params=[pytest.param(1, id="one seed", marks=pytest.mark.slow), pytest.param(3, id="three seeds")])
def built(request: pytest.FixtureRequest, reports: Callable[[int], Path]) -> Path:
    return reports(request.param)


@pytest.mark.parametrize(
    ("seeds", "language", "width", "scheme"),
    [view if view in FEW else pytest.param(*view, marks=pytest.mark.slow) for view in VIEWS],
)
def test_the_page_is_whole(
    kept: Callable[..., Opened], reports: Callable[[int], Path], seeds: int, language: str, width: int, scheme: str
) -> None:
    opened = kept(reports(seeds) / PAGES[language], width, scheme)
    page = opened.page
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


@pytest.mark.parametrize("language", [pytest.param("en", marks=pytest.mark.slow), "zh"])
def test_tables_sort_by_value_both_ways(chromium: Any, built: Path, language: str) -> None:
    page = Opened(chromium, built / PAGES[language], 1400, "light").page
    read = "(n) => [...document.querySelectorAll('#table13 tbody tr')].map((r) => Number(r.cells[n].dataset.value))"
    try:
        page.locator("details.numbers summary").first.click()
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
    page = Opened(chromium, built / "chapter8.html", 380, "light").page
    try:
        page.locator("a.language").click()
        page.wait_for_url("**/chapter8.zh.html")
        assert page.locator("html").get_attribute("lang") == "zh-CN"
        page.locator("a.language").click()
        page.wait_for_url("**/chapter8.html")
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


def test_every_link_inside_the_page_has_a_target(kept: Callable[..., Opened], built: Path) -> None:
    page = kept(built / PAGES["en"], 1400, "light").page
    dangling = "[...document.querySelectorAll('a[href^=\"#\"]')].filter((a) => !document.querySelector(a.hash)).length"
    assert page.evaluate(dangling) == 0
    assert page.evaluate("document.querySelectorAll('[id]').length") == page.evaluate(
        "new Set([...document.querySelectorAll('[id]')].map((n) => n.id)).size"
    )


def test_a_link_to_what_stands_elsewhere_leads_to_the_whole_book(chromium: Any, built: Path) -> None:
    page = Opened(chromium, built / "chapter1.zh.html", 1400, "light").page
    try:
        page.goto(f"{(built / 'index.zh.html').as_uri()}#pair13")
        page.wait_for_url("**/book.zh.html#pair13")
        page.goto(f"{(built / 'chapter7.zh.html').as_uri()}#pair13")
        assert page.url.endswith("chapter7.zh.html#pair13")
    finally:
        page.close()


def test_a_question_works_by_keyboard_and_unfolds_in_print(chromium: Any, built: Path) -> None:
    page = Opened(chromium, built / PAGES["zh"], 1400, "light").page
    shown = "() => [...document.querySelectorAll('#ask-combinations-figure details p')].filter((p) => "
    shown += "p.checkVisibility({ contentVisibilityAuto: true })).length"
    try:
        order = ["ask-combinations-figure", "figure13", "ask-combinations-table", "words13"]
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id)")
        assert [one for one in ids if one in order] == order
        assert page.evaluate(shown) == 0
        choices = page.locator("#ask-combinations-figure .choices summary")
        choices.first.focus()
        page.keyboard.press("Enter")
        assert page.evaluate(shown) == 1
        assert page.locator("#ask-combinations-figure .choices p").first.inner_text().startswith("不对。")
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        assert page.locator("#ask-combinations-figure .choices p").nth(1).inner_text().startswith("对，")
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert page.locator("#ask-combinations-figure .reveal p").is_visible()
        page.reload()
        page.emulate_media(media="print")
        heights = "() => [...document.querySelectorAll('.ask details p')].map((p) => p.getBoundingClientRect().height)"
        assert min(page.evaluate(heights)) > 10
        assert page.locator(".ask .hint").first.is_hidden()
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
