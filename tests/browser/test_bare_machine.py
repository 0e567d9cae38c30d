"""On a machine without Chinese fonts, every Chinese character is set in the font that comes along."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser.conftest import ARGUMENTS, CHROMIUM
from browser.fixture_runs import write_runs
from tightgrad_lab import report

pytestmark = pytest.mark.browser

LATIN = Path("/usr/share/fonts/truetype/liberation")
CONFIGURATION = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{fonts}</dir><cachedir>{cache}</cachedir></fontconfig>
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


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("book")
    report.build(write_runs(root / "runs"), root / "out")
    return root / "out"


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
