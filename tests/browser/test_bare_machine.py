"""On a machine without Chinese fonts, every Chinese character is set in the font that comes along."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from browser.conftest import ARGUMENTS, CHROMIUM

pytestmark = pytest.mark.browser

LATIN = Path("/usr/share/fonts/truetype/liberation")
CONFIGURATION = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{fonts}</dir><cachedir>{cache}</cachedir></fontconfig>
"""
REAL = os.environ.get("TIGHTGRAD_REPORT")
PAGES = ("index.zh.html", "chapter1.zh.html", "glossary.html")
REAL_PAGES = ("index.zh.html", *(f"chapter{n}.zh.html" for n in range(1, 9)), "book.html", "slides.zh.html")

# Draws every character of the headings, in the heading's own font, and gives those whose pixels are the box that
# stands for a character that no font has.
BOXES = """
() => {
  const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  paint.canvas.width = paint.canvas.height = 48;
  const pixels = (font, char) => {
    paint.clearRect(0, 0, 48, 48);
    paint.font = font;
    paint.fillText(char, 8, 36);
    return paint.getImageData(0, 0, 48, 48).data.join();
  };
  const found = new Set();
  let seen = 0;
  for (const heading of document.querySelectorAll("h1, h2, h3, h4, summary, figcaption")) {
    const { fontFamily, fontWeight } = getComputedStyle(heading);
    const font = `${fontWeight} 24px ${fontFamily}`;
    const box = pixels(font, "\ue123");
    for (const char of new Set(heading.textContent)) {
      if (!char.trim()) continue;
      seen += 1;
      if (pixels(font, char) === box) found.add(char);
    }
  }
  return [seen, [...found]];
}
"""
SELECTORS = ("h1", "h2", "h3", "h4", ".prose p", "pre.code code", "math mtext", "nav a", "summary", "td")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, chromium: Any) -> Iterator[Any]:
    """A Chromium that finds Latin fonts only."""
    if CHROMIUM is None or not LATIN.is_dir():
        pytest.skip("needs Chromium and the Liberation fonts")
    root = tmp_path_factory.mktemp("fonts")
    shutil.copytree(LATIN, root / "latin")
    (root / "fonts.conf").write_text(CONFIGURATION.format(fonts=root / "latin", cache=root / "cache"))
    environment = {**os.environ, "FONTCONFIG_FILE": str(root / "fonts.conf")}
    # One process may have one Playwright only, which the session's browser comes from.
    browser = chromium.browser_type.launch(executable_path=CHROMIUM, args=ARGUMENTS, env=environment)
    yield browser
    browser.close()


@pytest.fixture
def built(reports: Callable[[int], Path]) -> Path:
    return reports(1)


def fonts(page: Any, selector: str) -> list[tuple[str, dict[str, int]]]:
    """Text of each element, and how many of its glyphs come from which font; ours are marked by a star."""
    session = page.context.new_cdp_session(page)
    for domain in ("DOM", "CSS"):
        session.send(f"{domain}.enable")
    document = session.send("DOM.getDocument", {"depth": 0})["root"]["nodeId"]
    found = []
    nodes = session.send("DOM.querySelectorAll", {"nodeId": document, "selector": selector})["nodeIds"]
    for node, text in zip(
        nodes, page.eval_on_selector_all(selector, "all => all.map(e => e.textContent)"), strict=True
    ):
        used = session.send("CSS.getPlatformFontsForNode", {"nodeId": node})["fonts"]
        counts: dict[str, int] = {}
        for one in used:
            name = f"{one['familyName']}{'*' if one['isCustomFont'] else ''}"
            counts[name] = counts.get(name, 0) + int(one["glyphCount"])
        found.append((text, counts))
    return found


@pytest.mark.parametrize("file", ["index.zh.html", "chapter3.zh.html", "glossary.html"])
def test_no_chinese_character_comes_from_a_font_of_the_system(bare: Any, built: Path, file: str) -> None:
    page = bare.new_page(viewport={"width": 1400, "height": 900})
    try:
        page.goto((built / file).as_uri())
        page.evaluate("document.fonts.ready")
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        seen = 0
        for selector in SELECTORS:
            for text, counts in fonts(page, selector):
                chinese = sum("\u4e00" <= char <= "\u9fff" for char in text)
                if not counts or not chinese:
                    continue
                seen += 1
                assert counts.get("TightGrad Sans SC*", 0) >= chinese, f"{selector}: {text[:40]} {counts}"
        assert seen > 8
    finally:
        page.close()


@pytest.mark.parametrize("file", [*PAGES, *(f"real {name}" for name in REAL_PAGES)])
def test_no_heading_shows_a_box(bare: Any, built: Path, file: str) -> None:
    """Looks at the pixels, not at the names of fonts."""
    kind, _, name = file.rpartition(" ")
    if kind and REAL is None:
        pytest.skip("give the folder of a report of real runs as TIGHTGRAD_REPORT")
    page = bare.new_page(viewport={"width": 1400, "height": 900})
    try:
        page.goto(((Path(str(REAL)).resolve() if kind else built) / name).as_uri())
        page.evaluate("document.fonts.ready")
        page.evaluate("Promise.all([...document.fonts].map((font) => font.load()))")
        seen, boxes = page.evaluate(BOXES)
        assert boxes == []
        assert seen > 30
    finally:
        page.close()


def test_a_box_would_be_seen(bare: Any, built: Path) -> None:
    page = bare.new_page()
    try:
        page.goto((built / "index.zh.html").as_uri())
        page.add_style_tag(content="h1, h2, h3, h4 { font-family: 'Liberation Sans' !important }")
        _, boxes = page.evaluate(BOXES)
        assert "梯" in boxes
    finally:
        page.close()
