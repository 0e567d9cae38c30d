"""Each number of a sentence leads to the table that holds it and names its machine; ranges hold their mean.

`python -m support.drawn_numbers` does the same with forty numbers of a book that a lab has made.
"""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from browser.fixture_runs import write_runs
from support.drawing import without_figures
from support.drawn_numbers import ELSEWHERE, check, draw, plates, sentences, wrong_ranges
from tightgrad_lab import report
from tightgrad_lab.experiments.handout import write_handout
from tightgrad_lab.report.pairs.window_timeline import _error
from tightgrad_lab.schema import NUMBERS, PUBLISHED, published_files


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Runs and the book of a machine that has short results of its own beside most published ones."""
    runs = write_runs(tmp_path_factory.mktemp("drawn") / "runs", seeds=3)
    write_handout(runs)
    for source in published_files():
        if source.stem in NUMBERS and source.stem != "clip_stages":
            result = json.loads(source.read_text(encoding="utf-8"))
            result["command"] = result["command"].removesuffix(" --full")
            (runs / source.stem).mkdir()
            (runs / source.stem / "result.json").write_text(json.dumps(result), encoding="utf-8")
    lacking = json.loads((PUBLISHED / "clip_stages.json").read_text(encoding="utf-8"))
    lacking["published"] = {"reason": "something is not installed"}
    (runs / "clip_stages").mkdir()
    (runs / "clip_stages" / "result.json").write_text(json.dumps(lacking), encoding="utf-8")
    with without_figures():
        report.build(runs, runs.parent / "out")
    return runs, runs.parent / "out"


@pytest.mark.parametrize("language", ELSEWHERE)
def test_every_number_leads_to_its_table_and_names_its_machine(book: tuple[Path, Path], language: str) -> None:
    runs, out = book
    found = draw(out, runs, language, 10**6, seed=0)
    assert len(found) > 150
    assert [f"{one.shown} in {one.text[:80]!r}: {one.problems}" for one in found if one.problems] == []
    assert sum(one.how == "in the table" for one in found) > len(found) / 3
    assert any(ELSEWHERE[language] in one.text for one in found)


def test_a_wrong_link_and_a_machine_left_out_are_found(book: tuple[Path, Path]) -> None:
    """The check itself can fail."""
    runs, out = book
    html = (out / "book.html").read_text(encoding="utf-8")
    known = plates(html)
    one = next(one for one in sentences(html) if one.anchor == "table09-full")
    one.anchor = "table08"
    one.files = ["runs/published/large_batches/result.json"]
    assert "is drawn from" in check(one, known, html, runs, "en").problems[0]
    two = next(one for one in sentences(html) if one.anchor == "table09-full")
    two.text = two.text.replace(ELSEWHERE["en"], "")
    assert "says otherwise" in check(two, known, html, runs, "en").problems[0]


@pytest.mark.parametrize("language", ELSEWHERE)
def test_each_range_holds_its_mean(book: tuple[Path, Path], language: str) -> None:
    name = "book.html" if language == "en" else f"book.{language}.html"
    assert wrong_ranges((book[1] / name).read_text(encoding="utf-8")) == []


@given(st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=5))
def test_a_range_of_errors_holds_its_mean(errors: list[float]) -> None:
    assert wrong_ranges(str(_error(errors).text)) == []


def test_a_range_that_does_not_is_found() -> None:
    assert wrong_ranges("<td>1.2e−7 (1e−7–1e−7)</td>") == ["1.2e−7 (1e−7–1e−7)"]
