"""The tables in words: what the course asks for, in both languages alike, every number from a measured row."""

import re
from pathlib import Path

import pytest

from support.drawing import write_result
from tightgrad_lab.report.book.chapters import read_tables
from tightgrad_lab.report.book.facts import MEASURED
from tightgrad_lab.report.book.library import Library
from tightgrad_lab.report.book.tables import arranged, table
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.model import Cell, Column, FigureSpec, Source, Table
from tightgrad_lab.report.texts import load

METHODS = ("clip_geometry", "window_timeline", "codec_gallery", "loss_spikes", "large_batches", "accuracy_vs_bytes")
PROS_AND_CONS = (*METHODS, "combinations")
SCENARIOS = ("temporal_order", "accumulation_memory", "link_speeds")
LANGUAGES = ("en", "zh")
EVIDENCE = re.compile(r"@(\w+) (.+)")


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_table_that_the_course_asks_for_is_there(language: str) -> None:
    found = read_tables(language)
    assert set(found) == {*PROS_AND_CONS, *SCENARIOS}
    for name, (heads, *rows) in found.items():
        assert len(heads) == (6 if name in SCENARIOS else 5)
        assert len(rows) >= 3
        assert all(cell for row in rows for cell in row), name


def test_both_languages_have_the_same_rows_and_measure_the_same() -> None:
    for name, (_, *rows) in read_tables("en").items():
        for own, other in zip(rows, read_tables("zh")[name][1:], strict=True):
            first, second = EVIDENCE.fullmatch(own[-1]), EVIDENCE.fullmatch(other[-1])
            assert (first is None) == (second is None), own[0]
            if first and second:
                assert first[1] == second[1]
                assert set(re.findall(r"\{\w+\}", first[2])) == set(re.findall(r"\{\w+\}", second[2])), own[0]


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_measured_number_is_typed(language: str) -> None:
    """A number in a cell of evidence is filled in; those of the settings (as rank 4, 0.1 %) are not measured."""
    for name, (_, *rows) in read_tables(language).items():
        for row in rows:
            match = EVIDENCE.fullmatch(row[-1])
            if match is None:
                continue
            assert match[1] in MEASURED, (name, row[0])
            typed = re.sub(r"\{\w+\}|[A-Za-z]+\d+\w*|1/|fp16|bf16|float32|10 Gbit/s|K = 1\b", "", match[2])
            assert re.findall(r"\d+\.\d+|\d{2,}", typed) == [], match[2]


@pytest.mark.parametrize("language", LANGUAGES)
def test_evidence_is_filled_from_the_rows_or_said_to_be_missing(tmp_path: Path, language: str) -> None:
    row = {"kind": "rnn", "runs": 15, "diverged": 4, "diverged_with": 1, "largest_norm": 649.0}
    library = Library(Runs(write_result(tmp_path, "temporal_order", {}, {}, [row])), load(language))
    found = table(library, "temporal_order")
    assert found is not None
    rnn, lstm, *_ = [str(row[-1].text) for row in found.rows]
    assert '<data value="4">4</data>' in rnn
    assert '<data value="649.0">649</data>' in rnn
    assert "#pair2" in rnn
    assert lstm == load(language)("words.open")
    assert found.source.patterns == (f"{tmp_path.name}/temporal_order/result.json",)
    assert "<" not in found.to_csv()


@pytest.mark.parametrize("language", LANGUAGES)
def test_numbers_stand_folded_behind_the_words(tmp_path: Path, language: str) -> None:
    texts, source = load(language), Source((), 0, "")
    figure = FigureSpec("figure02", "2", "", "", [], source, lambda *_: pytest.fail("drawn"))
    numbers = Table("table02", "2", "Title", [], [Column("a", "A")], [[Cell(1, "1")]], source)
    tmp_path.joinpath("runs").mkdir()
    drawn, words, folded = arranged(Library(Runs(tmp_path / "runs"), texts), "temporal_order", [figure, numbers])
    assert isinstance(drawn, FigureSpec)
    assert isinstance(words, Table)
    assert isinstance(folded, Table)
    assert drawn.shows == texts("pair.temporal_order.figure.shows")
    assert (words.kind, words.label, folded.kind, folded.slug) == ("words", "2", "folded", "table02")
    assert folded.label != words.label
    assert folded.title != words.title
    assert arranged(Library(Runs(tmp_path / "runs"), texts), "temporal_order", []) == []
