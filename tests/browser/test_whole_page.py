"""The page with all that comes with the package: accessible as axe sees it, nothing cut, nothing overlapping."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from browser.fixture_runs import write_runs
from browser.opened import CHECK_SVG, CONTRAST, Opened
from support.drawing import without_figures
from tightgrad_lab import report
from tightgrad_lab.experiments.handout import write_handout
from tightgrad_lab.schema import NUMBERS, published_files

pytestmark = pytest.mark.browser

PAGES = {"en": "book.html", "zh": "book.zh.html"}
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
# Of rules that pass, all but one element of thousands is left out of the answer, which takes longer than to look.
OPTIONS = {"runOnly": {"type": "tag", "values": RULES}, "resultTypes": ["violations"]}
UNFOLD = "document.querySelectorAll('details').forEach((one) => { one.open = true; })"

# Text that leaves the window, or an element that hides what does not fit; tables and code scroll on purpose.
CUT = """
() => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const range = document.createRange();
  const found = [];
  while (walker.nextNode()) {
    const node = walker.currentNode;
    const parent = node.parentElement;
    if (!node.textContent.trim() || parent.closest("svg, .scroll, pre, script, .skip, .formula, .long")) continue;
    const head = parent.closest(".words thead");  // on phones each cell shows its heading, and screen readers read this
    if (head && getComputedStyle(head).clipPath !== "none") continue;
    range.selectNodeContents(node);
    for (const line of range.getClientRects()) {
      if (line.width < 1) continue;
      let frame = parent;
      while (frame !== document.body && getComputedStyle(frame).overflowX === "visible") frame = frame.parentElement;
      const box = frame === document.body ? { left: 0, right: innerWidth } : frame.getBoundingClientRect();
      if (line.right > box.right + 1 || line.left < box.left - 1) found.push(node.textContent.trim().slice(0, 60));
    }
  }
  return found;
}
"""

# Lines of text that lie on other text, in headings, captions, cells and lists.
OVERLAP = """
() => {
  const blocks = [...document.querySelectorAll("h1, h2, h3, h4, p, li > a, dt, dd, summary")]
    .filter((node) => node.getClientRects().length && !node.closest("svg, .scroll"))
    .filter((node) => !node.querySelector("p, h3, h4"));
  const boxes = blocks.flatMap((node) => [...node.getClientRects()].map((box) => [node, box]))
    .sort((a, b) => a[1].top - b[1].top);
  const found = [];
  boxes.forEach(([node, box], i) => {
    for (let j = i + 1; j < boxes.length && boxes[j][1].top < box.bottom - 3; j += 1) {
      const [other, next] = boxes[j];
      const across = Math.min(box.right, next.right) - Math.max(box.left, next.left);
      if (across > 2 && !node.contains(other) && !other.contains(node)) {
        found.push(`${node.textContent.slice(0, 40)} / ${other.textContent.slice(0, 40)}`);
      }
    }
  });
  return found;
}
"""

REAL = os.environ.get("TIGHTGRAD_REPORT")


@pytest.fixture(scope="module")
def published_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results that come with the package."""
    runs = write_runs(tmp_path_factory.mktemp("published") / "runs", seeds=3)
    write_handout(runs)
    return runs


@pytest.fixture(scope="module")
def published(published_runs: Path) -> Path:
    report.build(published_runs, published_runs.parent / "report")
    return published_runs.parent / "report"


@pytest.fixture(scope="module")
def own(published_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The book in which the published results are this machine's own as well."""
    root = tmp_path_factory.mktemp("own")
    runs = shutil.copytree(published_runs, root / "runs")
    for source in published_files():
        target = runs / source.stem / "result.json"
        target.parent.mkdir()
        shutil.copyfile(source, target)
    report.build(runs, root / "report")
    return root / "report"


@pytest.fixture
def book(kept: Callable[..., Opened], own: Path) -> Callable[..., Opened]:
    """The whole book of a language with all that can be unfolded, which tests leave so."""

    def unfolded(language: str, width: int = 1400, scheme: str = "light") -> Opened:
        found = kept(own / PAGES[language], width, scheme)
        found.page.evaluate(UNFOLD)
        return found

    return unfolded


SHOWN = [("en", 1400, "light"), ("zh", 380, "dark")]
EVERY = [
    *(("own", *view) for view in SHOWN),
    ("own", "en", 380, "light"),
    ("own", "zh", 1400, "dark"),
    ("own", "en", 1400, "dark"),
    ("own", "zh", 380, "light"),
    ("own", "en", 380, "dark"),
    ("own", "zh", 1400, "light"),
    ("published", "en", 380, "dark"),
    ("published", "zh", 1400, "light"),
]


@pytest.mark.parametrize(("language", "width", "scheme"), SHOWN)
def test_nothing_is_cut_in_the_whole_book(book: Callable[..., Opened], language: str, width: int, scheme: str) -> None:
    look_at(book(language, width, scheme), width)


@pytest.mark.slow
@pytest.mark.parametrize(("made", "language", "width", "scheme"), EVERY)
def test_nothing_is_cut_and_axe_is_content(
    chromium: Any, request: pytest.FixtureRequest, made: str, language: str, width: int, scheme: str
) -> None:
    look_and_ask_axe(chromium, request.getfixturevalue(made) / PAGES[language], width, scheme)


@pytest.mark.parametrize(
    ("file", "width", "scheme"),
    [
        ("index.zh.html", 380, "light"),
        ("index.html", 1400, "dark"),
        ("chapter5.html", 380, "dark"),
        pytest.param("chapter6.zh.html", 1400, "light", marks=pytest.mark.slow),
        ("summary.zh.html", 380, "light"),
        ("faq.html", 1400, "light"),
        ("glossary.zh.html", 380, "dark"),
        ("references.html", 380, "light"),
    ],
)
def test_the_pages_of_the_book_are_whole(chromium: Any, own: Path, file: str, width: int, scheme: str) -> None:
    look_and_ask_axe(chromium, own / file, width, scheme)


FONTS = """
() => [...document.querySelectorAll("math")].filter((one) => one.getClientRects().length)
  .map((one) => getComputedStyle(one).fontFamily.split(",")[0].replaceAll('"', ""))
"""


def test_formulas_are_set_in_the_font_that_comes_along(book: Callable[..., Opened]) -> None:
    page = book("en").page
    assert set(page.evaluate(FONTS)) == {"TightGrad Math"}
    assert page.evaluate("document.fonts.check('16px \"TightGrad Math\"')")
    high = "() => [...document.querySelectorAll('.formula')].map((one) => one.getBoundingClientRect().height)"
    assert min(page.evaluate(high)) > 20


@pytest.mark.skipif(REAL is None, reason="give the folder of a report of real runs as TIGHTGRAD_REPORT")
@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("width", [380, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_of_real_runs(chromium: Any, language: str, width: int, scheme: str) -> None:
    assert REAL is not None
    look_and_ask_axe(chromium, Path(REAL).resolve() / PAGES[language], width, scheme)


def look_at(opened: Opened, width: int) -> None:
    page = opened.page
    assert opened.complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CUT) == []
    assert page.evaluate(OVERLAP) == []
    assert page.evaluate(CHECK_SVG) == []
    assert page.evaluate(CONTRAST) == []


def look_and_ask_axe(chromium: Any, page_file: Path, width: int, scheme: str) -> None:
    opened = Opened(chromium, page_file, width, scheme)
    try:
        opened.page.evaluate(UNFOLD)
        look_at(opened, width)
        found = Axe().run(opened.page, options=OPTIONS)
        assert found.violations_count == 0, found.generate_report()
        assert len(found.response["passes"]) > 25
    finally:
        opened.page.close()


SCROLLING = """
() => [...document.querySelectorAll(".scroll")]
  .filter((one) => one.scrollWidth > one.clientWidth)
  .map((one) => `${one.parentElement.id}: ${one.scrollWidth - one.clientWidth} pixels`)
"""


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_table_scrolls_on_a_desk(book: Callable[..., Opened], language: str) -> None:
    page = book(language).page
    assert page.locator(".scroll").count() > 10
    assert page.evaluate(SCROLLING) == []
    page.set_viewport_size({"width": 380, "height": 900})
    assert page.evaluate(SCROLLING) != []  # the question can be answered otherwise


FAMILY = """
(selector) => getComputedStyle(document.querySelector(selector)).fontFamily.split(",")
  .map((one) => one.trim().replaceAll('"', ""))
"""


def test_chinese_is_set_in_the_font_that_comes_along(book: Callable[..., Opened]) -> None:
    """On a machine without Chinese fonts, a system font that comes first shows boxes."""
    page = book("zh").page
    for selector in ("body", "h1", "h3", "table", "nav", "figcaption", ".lead"):
        families = page.evaluate(FAMILY, selector)
        assert families[0] == "TightGrad Sans SC", selector
        assert families.index("system-ui") == len(families) - 2, selector
    assert "TightGrad Sans SC" in page.evaluate(FAMILY, "math mtext")
    assert "TightGrad Sans SC" in page.evaluate(FAMILY, "pre.code code")


def test_the_link_to_the_chinese_page_is_set_in_it_too(book: Callable[..., Opened]) -> None:
    page = book("en").page
    assert page.evaluate(FAMILY, ".language")[0] == "TightGrad Sans SC"
    assert page.evaluate(FAMILY, "#glossary td[lang]")[0] == "TightGrad Sans SC"
    assert "TightGrad Sans SC" not in page.evaluate(FAMILY, "body")


def test_these_checks_can_fail(chromium: Any, own: Path) -> None:
    page = Opened(chromium, own / "index.html", 380, "light").page
    broken = """
    () => {
      document.querySelector("main").insertAdjacentHTML("afterbegin",
        '<img src="data:,"><h6 style="margin:0;height:5px">one</h6><h4 style="margin:0;white-space:nowrap">two, '
        + 'which is much longer than the window is wide and so cannot be read to its end on any telephone</h4>'
        + '<p style="margin-top:-1.2rem">three</p><p style="color:#ddd">four</p>');
    }
    """
    try:
        page.evaluate(broken)
        assert page.evaluate(CUT) != []
        assert page.evaluate(OVERLAP) != []
        assert page.evaluate(CONTRAST) != []
        found = {violation["id"] for violation in Axe().run(page, options=OPTIONS).response["violations"]}
        assert {"image-alt", "color-contrast"} <= found
    finally:
        page.close()


def test_a_link_to_a_folded_result_opens_it(chromium: Any, published_runs: Path, tmp_path: Path) -> None:
    with without_figures():
        report.build(published_runs, tmp_path)
    page = Opened(chromium, tmp_path / PAGES["en"], 1400, "light").page
    try:
        assert page.evaluate("[...document.querySelectorAll('details.full')].every((one) => !one.open || one.id)")
        assert page.locator("details.full[open]").count() == sum(path.stem in NUMBERS for path in published_files())
        page.locator("details.full summary").first.click()
        folded = page.locator("details.full").first
        assert folded.get_attribute("open") is None
        anchor = folded.get_attribute("id")
        page.evaluate(f"location.hash = '#{anchor}'")
        page.wait_for_function(f"document.getElementById('{anchor}').open")
    finally:
        page.close()
