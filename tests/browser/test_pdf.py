"""The book as PDF: a title page, numbered pages, folded answers open."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from browser.conftest import CHROMIUM
from browser.fixture_runs import write_runs
from browser.opened import Opened
from tightgrad_lab import report
from tightgrad_lab.report import ReportError, pdf
from tightgrad_lab.report.pages import WHOLE, file_name
from tightgrad_lab.report.texts import load

pytestmark = pytest.mark.browser


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")
def test_the_book_prints_in_both_languages(tmp_path: Path) -> None:
    report.build(write_runs(tmp_path / "runs"), tmp_path / "report")
    found = pdf.print_book(tmp_path / "report")
    assert [path.name for path in found] == ["book.pdf", "book.zh.pdf"]
    for path in found:
        data = path.read_bytes()
        assert data.startswith(b"%PDF")
        assert len(re.findall(rb"/Type\s*/Page[^s]", data)) > 40
        assert re.search(rb"/MediaBox\s*\[0 0 84\d[\d.]* 59", data), "tables of many columns stand on wide pages"


SMALL = """
() => {
  const found = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !parent.getClientRects().length) continue;
    if (!parent.closest("table") || parent.closest("math, svg, sub, sup")) continue;
    const points = 0.75 * parseFloat(getComputedStyle(parent).fontSize);
    const where = `${parent.tagName}.${parent.className} ${parent.textContent.slice(0, 20)}`;
    if (points < 7.99) found.add(`${points.toFixed(1)} ${where}`);
  }
  return [...found].slice(0, 20);
}
"""


@pytest.mark.parametrize("language", ["en", "zh"])
def test_tables_print_at_eight_points_or_more_and_a_title_page_comes_first(
    chromium: Any, reports: Callable[[int], Path], language: str
) -> None:
    folder = Path(os.environ.get("TIGHTGRAD_REPORT") or reports(1)).resolve()
    page = Opened(chromium, folder / file_name(WHOLE, language), 720, "light").page
    try:
        page.emulate_media(media="print")
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert page.evaluate(SMALL) == []
        head = page.locator(".masthead")
        texts = load(language)
        for said in (texts("site.course"), texts("site.title"), texts("site.subtitle")):
            assert said in head.inner_text()
        assert re.search(r"20\d\d-\d\d-\d\d", head.locator(".date").inner_text())
        assert page.evaluate("getComputedStyle(document.querySelector('.masthead')).breakAfter") == "page"
        rules = page.evaluate("[...document.styleSheets].flatMap((s) => [...s.cssRules]).map((r) => r.cssText).join()")
        assert "counter(page)" in rules
    finally:
        page.close()


def test_without_a_book_or_a_browser_it_says_what_to_do(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/true")
    with pytest.raises(ReportError, match=r"There is no .*book\.html\. Run `tightgrad report` first"):
        pdf.print_book(tmp_path)
    (tmp_path / "book.html").write_text("<p>", encoding="utf-8")
    with pytest.raises(ReportError, match=r"/bin/true did not print .*book\.html"):
        pdf.print_book(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ReportError, match=r"No Chromium on PATH; looked for chromium"):
        pdf.print_book(tmp_path)
