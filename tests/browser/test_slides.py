"""The slides in headless Chromium, one by one: nothing cut, everything has its notes and its source, keys work."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

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


def opened(chromium: Any, folder: Path, language: str, scheme: str = "light", query: str = "") -> Opened:
    found = Opened(chromium, folder / f"slides.{language}.html", 1280, scheme)
    found.page.set_viewport_size({"width": 1280, "height": 720})
    if query:
        found.page.goto(f"{(folder / f'slides.{language}.html').as_uri()}{query}")
    found.page.wait_for_function(READY)
    return found


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_slide_is_whole_and_has_its_notes_and_sources(chromium: Any, built: Path, language: str) -> None:
    found = opened(chromium, built, language, "dark" if language == "zh" else "light")
    page = found.page
    try:
        names = page.evaluate("[...document.querySelectorAll('.slides > section')].map((one) => one.id)")
        questions = [name for name in names if name.endswith("-predict")]
        continued = [name for name in names if name.endswith("-figure")]  # the rest of a figure too tall for one slide
        assert 40 <= len(names) - len(questions) - len(continued) <= 50
        assert 50 <= len(names) <= 65
        assert 1 <= len(questions) <= len(PREDICTED)
        seen, faults = [], {}
        for _ in names:
            name = page.evaluate(HERE)
            seen.append(name)
            if cut := page.evaluate(CUT):
                faults[name] = cut
            slide = page.locator(f"#{name}")
            assert len(slide.locator("aside.notes").text_content().strip()) > 40
            assert re.search(r"\d+ (min|分钟)", slide.locator("aside.notes .minutes").text_content())
            for plate in ("figure", ".fit"):
                if slide.locator(plate).count():
                    assert "tightgrad lab" in slide.locator("p.source").text_content()
            page.keyboard.press("ArrowRight")
        assert seen == names
        assert faults == {}
        assert page.evaluate(HERE) == names[-1]
        page.keyboard.press("ArrowLeft")
        assert page.evaluate(HERE) == names[-2]
        assert found.complaints == []
        assert [url for url in found.requests if not url.startswith(("file://", "data:"))] == []
    finally:
        page.close()


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_smallest_text_of_each_figure_can_be_read(chromium: Any, built: Path, language: str) -> None:
    page = opened(chromium, built, language).page
    try:
        sizes = {}
        for number in range(page.locator(".slides > section").count()):
            page.evaluate(f"Reveal.slide({number})")
            name = page.evaluate(HERE)
            if smallest := page.evaluate(SMALLEST):
                sizes[name] = smallest
        # The box of a label with an exponent, which has lines of its own, is higher than its letters.
        faults = [one for one in page.evaluate(CHECK_SVG) if one.startswith("overlap") and "\n" not in one]
        assert len(sizes) >= 14  # parts of figures; of three pairs nothing is stored
        assert {name: size for name, size in sizes.items() if size < 12} == {}
        assert faults == []
    finally:
        page.close()


@pytest.mark.parametrize("language", LANGUAGES)
def test_figures_and_tables_are_those_of_the_book(chromium: Any, built: Path, language: str) -> None:
    page = opened(chromium, built, language).page
    try:
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
    finally:
        page.close()


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


@pytest.mark.parametrize("language", [pytest.param("en", marks=pytest.mark.slow), "zh"])
def test_a_slide_prints_on_a_page(built: Path, language: str, tmp_path: Path) -> None:
    if shutil.which("chromium") is None:
        pytest.skip("no Chromium on PATH")
    copy = shutil.copytree(built, tmp_path / "report")
    for other in LANGUAGES:
        if other != language:
            (copy / f"slides.{other}.html").write_text("<p>", encoding="utf-8")
    found = {path.name: path.read_bytes() for path in pdf.print_slides(copy)}
    data = found[f"slides.{language}.pdf"]
    count = (copy / f"slides.{language}.html").read_text(encoding="utf-8").count("<section ")
    assert len(re.findall(rb"/Type\s*/Page[^s]", data)) == count
    assert set(re.findall(rb"/MediaBox\s*\[([^\]]*)\]", data)) == {b"0 0 960 540"}


def test_these_checks_can_fail(chromium: Any, built: Path) -> None:
    page = opened(chromium, built, "en").page
    try:
        page.evaluate("Reveal.slide(6)")
        assert page.evaluate(CUT) == []
        page.evaluate("document.querySelector('.present h2').style.marginBottom = '-60px'")
        assert page.evaluate(CUT) != []
        page.evaluate("document.querySelector('.present h2').style.marginBottom = '600px'")
        assert any("high" in one for one in page.evaluate(CUT))
    finally:
        page.close()
