"""What comes with the package is shown below what this machine measured, with its machine and its time."""

import importlib
import json
import re
from pathlib import Path

import pytest

from browser.fixture_runs import write_runs
from support.drawing import without_figures
from tightgrad_lab import report
from tightgrad_lab.experiments.handout import write_handout
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.published import published
from tightgrad_lab.report.measured.results import read_best
from tightgrad_lab.report.pairs import PAIRS
from tightgrad_lab.report.texts import load
from tightgrad_lab.schema import PUBLISHED, STUDIES, number, published_files

SOURCES = published_files()
NINE = PAIRS[8]


def _own(root: Path, command: str) -> None:
    result = json.loads((PUBLISHED / "large_batches.json").read_text(encoding="utf-8")) | {"command": command}
    path = root / "large_batches" / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result), encoding="utf-8")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_handout(write_runs(tmp_path / "runs"))
    return tmp_path / "runs"


def test_all_of_them_are_handed_to_the_report(root: Path) -> None:
    assert SOURCES
    for source in SOURCES:
        assert read_best(root, source.stem) is not None
        if source.stem in STUDIES:
            continue
        pair = PAIRS[number(source.stem) - 1]
        assert pair.content is None or published(Runs(root), pair, load("en")) is not None


def test_it_stands_beside_a_short_run_and_names_its_machine(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("tightgrad_lab.report.build"), "LANGUAGES", ("en",))
    _own(root, "tightgrad lab --only 9")
    with without_figures():
        report.build(root, tmp_path / "out")
    page = (tmp_path / "out" / "book.html").read_text(encoding="utf-8")
    assert page.count('id="figure09"') == page.count('id="figure09-full"') == 1
    own = r'<p class="about">((?:(?!</p>).)*tightgrad lab --only 9 --full.*?)</p>'
    about = re.search(own, page)
    assert about is not None
    environment = json.loads((PUBLISHED / "large_batches.json").read_text())["environment"]
    assert environment["processor"] in about[1]
    assert environment["time"][:10] in about[1]
    assert "min on" in about[1]
    assert (tmp_path / "out" / "tables" / "table09-full.en.csv").is_file()
    assert "runs/published/large_batches/result.json" in page


def test_a_full_run_of_ones_own_takes_its_place(root: Path) -> None:
    _own(root, "tightgrad lab --only 9 --full")
    assert published(Runs(root), NINE, load("zh")) is None
    best = read_best(root, "large_batches")
    assert best is not None
    assert best.path == root / "large_batches" / "result.json"
