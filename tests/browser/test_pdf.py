"""The book as PDF: a title page, numbered pages, folded answers open."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from browser.conftest import CHROMIUM
from browser.fixture_runs import write_runs
from tightgrad_lab import report
from tightgrad_lab.report import ReportError, pdf

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
