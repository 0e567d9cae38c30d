"""The slides in headless Chromium, one by one: nothing cut, everything has its notes and its source, keys work."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from browser.conftest import BROWSERS, CHROMIUM
from browser.fixture_runs import write_runs
from browser.opened import CHECK_SVG, Opened
from tightgrad_lab import slides
from tightgrad_lab.experiments.handout import write_handout
from tightgrad_lab.report import pdf
from tightgrad_lab.report.book.prediction_facts import PREDICTED
from tightgrad_lab.schema import NUMBERS, published_files

pytestmark = pytest.mark.browser

LANGUAGES = ("en", "zh")
READY = "document.documentElement.dataset.ready === 'true'"
HERE = "Reveal.getCurrentSlide().id"

# Boxes of text and of drawings that leave the slide, and blocks in the slide's column that lie on one another.
CUT = """
() => {
  const section = Reveal.getCurrentSlide();
  const slide = section.querySelector(".slide");
  const frame = slide.getBoundingClientRect();
  const found = [];
  if (slide.scrollHeight > slide.clientHeight + 1) found.push(`${slide.scrollHeight} high`);
  if (slide.scrollWidth > slide.clientWidth + 1) found.push(`${slide.scrollWidth} wide`);
  const walker = document.createTreeWalker(slide, NodeFilter.SHOW_TEXT);
  const range = document.createRange();
  const inside = (box) => box.left >= frame.left - 1 && box.right <= frame.right + 1
    && box.top >= frame.top - 1 && box.bottom <= frame.bottom + 1;
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (!node.textContent.trim() || node.parentElement.closest("[hidden]")) continue;
    range.selectNodeContents(node);
    for (const box of range.getClientRects()) {
      if (box.width > 1 && !inside(box)) found.push(node.textContent.trim().slice(0, 50));
    }
  }
  const drawn = slide.querySelectorAll("svg");
  drawn.forEach((svg) => { if (!inside(svg.getBoundingClientRect())) found.push("a drawing"); });
  const blocks = [...slide.querySelectorAll("h2, li, p, figcaption, .drawing, tr")]
    .filter((one) => one.getClientRects().length && !one.querySelector("li, p"));
  blocks.forEach((one, i) => blocks.slice(i + 1).forEach((other) => {
    const [a, b] = [one.getBoundingClientRect(), other.getBoundingClientRect()];
    const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const up = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (across > 2 && up > 3 && !one.contains(other) && !other.contains(one)) {
      found.push(`${one.textContent.trim().slice(0, 30)} / ${other.textContent.trim().slice(0, 30)}`);
    }
  }));
  return found;
}
"""

# What a slide has beside what it shows, and whether that needs a source.
TOLD = """
() => {
  const slide = Reveal.getCurrentSlide();
  const text = (selector) => slide.querySelector(selector).textContent;
  return {
    name: slide.id, notes: text("aside.notes"), minutes: text("aside.notes .minutes"),
    plate: slide.querySelector("figure, .fit") !== null,
    sources: [...slide.querySelectorAll("p.source")].map((one) => one.textContent),
  };
}
"""

# Pixels of the smallest letter, exponents included, that the drawing of this slide shows; null if it has none.
SMALLEST = """
() => {
  const svg = Reveal.getCurrentSlide().querySelector(".drawing svg");
  if (!svg) return null;
  const frame = svg.getBoundingClientRect();
  const shown = [...svg.querySelectorAll("text, tspan")].filter((one) => {
    const box = one.getBoundingClientRect();
    return one.textContent.trim() && box.width && box.bottom > frame.top && box.top < frame.bottom;
  });
  return Math.min(...shown.map((one) =>
    parseFloat(getComputedStyle(one).fontSize) * (one.closest("text") ?? one).getScreenCTM().a));
}
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides of runs with all that comes with the package."""
    root = tmp_path_factory.mktemp("slides")
    runs = write_runs(root / "runs", seeds=3)
    write_handout(runs)
    slides.build(runs, root / "report")
    return root / "report"


def opened(chromium: Any, folder: Path, language: str) -> Opened:
    found = Opened(chromium, folder / f"slides.{language}.html", 1280, "light", 720)
    found.page.wait_for_function(READY)
    return found


@pytest.fixture
def deck(kept: Callable[..., Opened], built: Path) -> Callable[[str], Opened]:
    """The deck of a language at its first slide; tests leave it as it is."""

    def at_start(language: str) -> Opened:
        scheme = "dark" if language == "zh" else "light"
        found = kept(built / f"slides.{language}.html", 1280, scheme, 720)
        found.page.wait_for_function(READY)
        found.page.evaluate("Reveal.slide(0)")
        return found

    return at_start


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_slide_is_whole_and_has_its_notes_and_sources(deck: Callable[[str], Opened], language: str) -> None:
    found = deck(language)
    page = found.page
    names = page.evaluate("[...document.querySelectorAll('.slides > section')].map((one) => one.id)")
    questions = [name for name in names if name.endswith("-predict")]
    continued = [name for name in names if name.endswith("-figure")]  # the rest of a figure too tall for one slide
    assert 40 <= len(names) - len(questions) - len(continued) <= 50
    assert 50 <= len(names) <= 65
    assert 1 <= len(questions) <= len(PREDICTED)
    seen, faults = [], {}
    for _ in names:
        told, cut = page.evaluate(f"() => [({TOLD})(), ({CUT})()]")
        seen.append(told["name"])
        if cut:
            faults[told["name"]] = cut
        assert len(told["notes"].strip()) > 40
        assert re.search(r"\d+ (min|分钟)", told["minutes"])
        if told["plate"]:
            (source,) = told["sources"]
            assert "tightgrad lab" in source
        page.keyboard.press("ArrowRight")
    assert seen == names
    assert faults == {}
    assert page.evaluate(HERE) == names[-1]
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(HERE) == names[-2]
    assert found.complaints == []
    assert [url for url in found.requests if not url.startswith(("file://", "data:"))] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_smallest_text_of_each_figure_can_be_read(deck: Callable[[str], Opened], language: str) -> None:
    page = deck(language).page
    found = page.evaluate(
        f"() => Reveal.getSlides().map((_, n) => {{ Reveal.slide(n); return [{HERE}, ({SMALLEST})()]; }})"
    )
    sizes = {name: smallest for name, smallest in found if smallest}
    # The box of a label with an exponent, which has lines of its own, is higher than its letters.
    faults = [one for one in page.evaluate(CHECK_SVG) if one.startswith("overlap") and "\n" not in one]
    assert len(sizes) >= 14  # parts of figures; of three pairs nothing is stored
    assert {name: size for name, size in sizes.items() if size < 12} == {}
    assert faults == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_figures_and_tables_are_those_of_the_book(deck: Callable[[str], Opened], language: str) -> None:
    page = deck(language).page
    measured = {path.stem for path in published_files()} | {"combinations", "image_case"}
    assert page.locator("section figure svg").count() >= len(measured)
    labels = page.locator("figcaption .label").all_text_contents()
    assert list(dict.fromkeys(int(re.sub(r"\D", "", label)) for label in labels)) == sorted(
        number for name, number in NUMBERS.items() if name in measured
    )
    rows = page.evaluate("[...document.querySelectorAll('.fit tbody')].map((one) => one.rows.length)")
    assert all(1 < count <= 8 for count in rows)
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('.fit table')].map((t) => parseFloat(t.style.fontSize)))"
    )
    assert smallest >= 13


def test_the_speaker_window_the_notes_and_the_overview(chromium: Any, built: Path) -> None:
    page = opened(chromium, built, "zh").page
    try:
        with page.context.expect_page() as popped:
            page.keyboard.press("s")
        speaker = popped.value
        first = speaker.locator("#said").text_content()
        assert "反向传播" in first
        page.keyboard.press("ArrowRight")
        speaker.wait_for_function("document.getElementById('where').textContent.startsWith('2 /')")
        assert speaker.locator("#said").text_content() != first
        assert "四节课" in speaker.locator("#next").text_content()
        speaker.wait_for_function("document.getElementById('clock').textContent > '00:00'")
        speaker.keyboard.press("ArrowRight")
        page.wait_for_function(f"{HERE} === 'splan'")
        speaker.close()
        assert page.locator("#notes").is_hidden()
        page.keyboard.press("n")
        assert "45" in page.locator("#notes").inner_text()
        bottom = page.evaluate("Reveal.getCurrentSlide().getBoundingClientRect().bottom")
        assert bottom <= page.locator("#notes").bounding_box()["y"] + 1
        page.keyboard.press("n")
        page.keyboard.press("Escape")
        assert page.evaluate("Reveal.isOverview()")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Escape")
        assert not page.evaluate("Reveal.isOverview()")
        assert page.evaluate(HERE) == "s1-1-points"
    finally:
        page.close()


def test_contents_and_languages_lead_where_they_say(chromium: Any, built: Path) -> None:
    page = opened(chromium, built, "zh").page
    try:
        assert page.locator(".of-title").inner_text().count("第二阶段") == 1
        assert page.locator(".of-title .date").inner_text().startswith("日期 20")
        page.keyboard.press("ArrowRight")
        page.locator(".chapters a", has_text="案例分析二").click()
        page.wait_for_function(f"{HERE} === 's8-2-points'")
        page.evaluate("location.hash = '#/s1-2-points'")
        page.wait_for_function(f"{HERE} === 's1-2-points'")
        drawn = page.locator("#s1-2-points .drawing svg")
        page.keyboard.press("z")
        assert drawn.bounding_box()["width"] > 1200
        page.keyboard.press("ArrowRight")
        assert page.locator(".zoomed").count() == 0
        page.keyboard.press("Home")
        page.locator(".keys a").click()
        page.wait_for_url("**/slides.en.html")
        targets = page.evaluate("[...document.querySelectorAll('.slide a')].map((a) => a.getAttribute('href'))")
        assert all(re.match(r"#/s|book\.html#|slides\.zh\.html|https://", target) for target in targets)
        inside = {target[2:] for target in targets if target.startswith("#/")}
        assert inside <= set(page.evaluate("[...document.querySelectorAll('section')].map((one) => one.id)"))
    finally:
        page.close()


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_slide_prints_on_a_page(built: Path, language: str, tmp_path: Path) -> None:
    if shutil.which("chromium") is None:
        pytest.skip("no Chromium on PATH")
    copy = shutil.copytree(built, tmp_path / "report")
    for other in LANGUAGES:
        if other != language:
            (copy / f"slides.{other}.html").write_text("<p>", encoding="utf-8")
    found = {path.name: path.read_bytes() for path in pdf.print_slides(copy)}
    _has_a_page_for_each_slide(found[f"slides.{language}.pdf"], copy / f"slides.{language}.html")


def test_the_first_slides_print_on_a_page_each(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to one with a figure and one with a table, by a Chromium that has no windows."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on PATH")
    monkeypatch.setattr(pdf, "BROWSERS", BROWSERS)
    monkeypatch.setattr(pdf, "LANGUAGES", ("zh",))
    copy = shutil.copytree(built, tmp_path / "report")
    deck = copy / "slides.zh.html"
    *slides, end = deck.read_text(encoding="utf-8").split("</section>")
    last = max(next(n for n, one in enumerate(slides) if shown in one) for shown in ("<figure", 'class="fit"'))
    deck.write_text("</section>".join([*slides[: last + 1], end]), encoding="utf-8")
    assert last < len(slides) / 2
    (printed,) = pdf.print_slides(copy)
    _has_a_page_for_each_slide(printed.read_bytes(), deck)


def _has_a_page_for_each_slide(data: bytes, deck: Path) -> None:
    assert len(re.findall(rb"/Type\s*/Page[^s]", data)) == deck.read_text(encoding="utf-8").count("<section ")
    assert set(re.findall(rb"/MediaBox\s*\[([^\]]*)\]", data)) == {b"0 0 960 540"}


def test_these_checks_can_fail(deck: Callable[[str], Opened]) -> None:
    page = deck("en").page
    try:
        page.evaluate("Reveal.slide(6)")
        assert page.evaluate(CUT) == []
        page.evaluate("document.querySelector('.present h2').style.marginBottom = '-60px'")
        assert page.evaluate(CUT) != []
        page.evaluate("document.querySelector('.present h2').style.marginBottom = '600px'")
        assert any("high" in one for one in page.evaluate(CUT))
    finally:
        page.evaluate("document.querySelector('.present h2').style.marginBottom = ''")
