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
ORDER = {
    "en": r"(?i)\b(?:fast|slow|quick|cheap|high|low|larg|small|simpl|easi)e(?:r|st)\b|\b(?:quick|quickly|slow|cheap"
    r"|most|least|best|worst|better|worse|hardly|almost|nearly|half|twice|more accurate|no gain|less|costs more)\b",
    "zh": "最(?!终|后)|几乎|较[慢快高低]|[极很][慢快高低大小]|一半|倍数高|没有好处|得不偿失|基本不|大多|误差[小大]"
    "|缺一不可|更[慢快高低好差]",
}
"""Words that put methods in an order, as only measured numbers may."""
NO_CLAIM = re.compile(
    r"The larger the matrix|largest 1 %|gradient hardly changes|[Ss]low links?|too slow|链路很慢|encodes twice"
)
"""What such a word says of a setting, a derivation or a symptom, and not of a measurement."""
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
        pairs = zip(rows, read_tables("zh")[name][1:], strict=True)
        for own, other in ((one, two) for row, same in pairs for one, two in zip(row, same, strict=True)):
            first, second = EVIDENCE.fullmatch(own), EVIDENCE.fullmatch(other)
            assert (first is None) == (second is None), own
            if first and second:
                assert first[1] == second[1]
                assert set(re.findall(r"\{\w+\}", first[2])) == set(re.findall(r"\{\w+\}", second[2])), own


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_measured_number_is_typed(language: str) -> None:
    """A number in a cell of evidence is filled in; those of the settings (as rank 4, 0.1 %) are not measured."""
    for name, (_, *rows) in read_tables(language).items():
        for cell in (cell for row in rows for cell in row):
            match = EVIDENCE.fullmatch(cell)
            if match is None:
                continue
            assert match[1] in MEASURED, (name, cell)
            typed = re.sub(r"\{\w+\}|[A-Za-z]+\d+\w*|1/|fp16|bf16|float32|10 Gbit/s|K = 1\b", "", match[2])
            assert re.findall(r"\d+\.\d+|\d{2,}", typed) == [], match[2]


def claims(cell: str, language: str) -> list[str]:
    """The words of order in a cell that has no measured number behind them."""
    return [] if EVIDENCE.fullmatch(cell) and "{" in cell else re.findall(ORDER[language], NO_CLAIM.sub("", cell))


@pytest.mark.parametrize("language", LANGUAGES)
def test_pros_and_cons_put_methods_in_an_order_only_by_numbers(language: str) -> None:
    for name in PROS_AND_CONS:
        for _, *cells in read_tables(language)[name][1:]:
            assert {cell: found for cell in cells if (found := claims(cell, language))} == {}, name


@pytest.mark.parametrize(
    ("cell", "language", "count"),
    [
        ("Fastest and simplest.", "en", 2),
        ("Almost no error", "en", 1),
        ("Needs a norm per unit, which is slow.", "en", 1),
        ("@codecs The least error, {int8_error}.", "en", 0),
        ("@codecs The least error.", "en", 1),
        ("最快，代码最简单", "zh", 2),
        ("编码极快，压缩倍数高而固定。", "zh", 2),
    ],
)
def test_words_of_order_are_found(cell: str, language: str, count: int) -> None:
    assert len(claims(cell, language)) == count


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
