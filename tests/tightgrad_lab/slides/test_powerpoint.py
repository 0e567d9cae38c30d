"""The deck as PowerPoint: text and tables that can be edited, notes on every slide, nothing beyond a slide's edge."""

import builtins
import functools
import io
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from markupsafe import Markup
from matplotlib.image import imread

from browser.fixture_runs import write_runs
from tightgrad_lab.report import ReportError
from tightgrad_lab.report.drawing import figures
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.texts import load
from tightgrad_lab.slides import powerpoint
from tightgrad_lab.slides.deck import Deck
from tightgrad_lab.slides.plates import Drawing
from tightgrad_lab.slides.powerpoint import HEIGHT, WIDTH, Sheet, build_powerpoint, lines_of, text_width
from tightgrad_lab.slides.words import load_words

IN_CHINESE = pytest.mark.parametrize("language", [pytest.param("en", marks=pytest.mark.slow), "zh"])
IN_ENGLISH = pytest.mark.parametrize("language", ["en", pytest.param("zh", marks=pytest.mark.slow)])
"""What both languages should pass, of which one takes seconds."""
pptx: Any = pytest.importorskip("pptx")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("powerpoint") / "runs")


@pytest.fixture(scope="module")
def built(runs: Path) -> Callable[[str], Any]:
    """Gives the slides of a language, which are made once."""

    @functools.cache
    def once(language: str) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(powerpoint, "LANGUAGES", (language,))
            (path,) = build_powerpoint(runs, runs.parent / "report")
        return pptx.Presentation(path)

    return once


def test_there_is_a_file_for_each_language_english_first(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Deck, "slides", lambda deck: [next(deck._slides())])
    written = build_powerpoint(runs, tmp_path)
    assert [path.name for path in written] == ["slides.en.pptx", "slides.zh.pptx"]
    titles = [pptx.Presentation(path).slides[0].shapes.title.text_frame.text for path in written]
    assert titles == [load(language)("site.title") for language in ("en", "zh")]


def texts_of(slide: Any) -> str:
    return "\n".join(shape.text_frame.text for shape in slide.shapes if shape.has_text_frame)


@IN_CHINESE
def test_it_has_the_slides_of_the_deck_with_their_notes(built: Callable[[str], Any], runs: Path, language: str) -> None:
    deck = Deck(Runs(runs), load(language), load_words(language)).slides()
    continued = load_words(language)("continued")
    slides = [one for one in built(language).slides if not one.shapes.title.text_frame.text.endswith(continued)]
    assert [slide.shapes.title.text_frame.text for slide in slides] == [one.title for one in deck]
    for slide, one in zip(slides, deck, strict=True):
        said = slide.notes_slide.notes_text_frame.text
        assert len(said) > 40
        assert all(note in said for note in one.spoken.notes)
        for point in one.spoken.points:
            assert point in texts_of(slide)


@IN_CHINESE
def test_tables_and_text_are_native_and_figures_name_their_source(built: Callable[[str], Any], language: str) -> None:
    slides = list(built(language).slides)
    tables = [shape.table for slide in slides for shape in slide.shapes if shape.has_table]
    assert len(tables) >= 4
    assert all(cell.text_frame.text.strip() for table in tables for cell in table.rows[0].cells)
    drawn = [slide for slide in slides if any(shape.shape_type == 13 for shape in slide.shapes)]
    assert len(drawn) >= 2
    for slide in drawn:
        assert "tightgrad lab" in texts_of(slide)
        pictures = [shape for shape in slide.shapes if shape.shape_type == 13]
        assert all(len(shape._element.nvPicPr.cNvPr.get("descr")) > 20 for shape in pictures)


@IN_CHINESE
def test_nothing_leaves_a_slide_or_lies_on_something_else(built: Callable[[str], Any], language: str) -> None:
    presentation = built(language)
    for number, slide in enumerate(presentation.slides, 1):
        boxes = [(s.left, s.top, s.left + s.width, s.top + s.height) for s in slide.shapes]
        for left, top, right, bottom in boxes:
            assert left >= 0, number
            assert top >= 0, number
            assert right <= presentation.slide_width, number
            assert bottom <= presentation.slide_height, number
        for one, other in combinations(boxes, 2):
            across = min(one[2], other[2]) - max(one[0], other[0])
            up = min(one[3], other[3]) - max(one[1], other[1])
            assert across <= 0 or up < 914400 * 0.12, f"slide {number} of {language}"


@IN_ENGLISH
def test_a_long_table_continues_on_the_next_slide(runs: Path, language: str) -> None:
    deck = Deck(Runs(runs), load(language), load_words(language))
    one = next(one for one in deck.slides() if one.kind == "verdicts")
    word = {"en": "word of a cell ", "zh": "单元格里的字"}[language]
    rows = [[f"{number}", word * (3 + number % 12)] for number in range(30)]
    presentation = pptx.Presentation()
    presentation.slide_width, presentation.slide_height = round(914400 * WIDTH), round(914400 * HEIGHT)
    found: list[list[str]] = []
    titles, rest = [], rows
    while rest:
        sheet = Sheet(presentation, deck, one, rest if rest is not rows else ())
        sheet._verdicts = lambda content, sheet=sheet: sheet.table(["n", "words"], rows, bottom=7.2)  # type: ignore
        sheet.fill()
        (shape,) = [shape for shape in sheet.slide.shapes if shape.has_table]
        assert shape.top + sum(row.height for row in shape.table.rows) <= 914400 * 7.2
        sizes = {run.font.size.pt for cell in shape.table.iter_cells() for run in cell.text_frame.paragraphs[0].runs}
        assert min(sizes) >= 12
        lines = [[cell.text_frame.text for cell in row.cells] for row in shape.table.rows]
        assert lines[0] == ["n", "words"]
        found += lines[1:]
        titles.append(sheet.slide.shapes.title.text_frame.text)
        rest = [*sheet.rest]
    assert found == rows
    assert len(titles) > 1
    assert titles == [one.title, *[one.title + load_words(language)("continued")] * (len(titles) - 1)]


@pytest.mark.parametrize(
    ("text", "lines"),
    [("", 1), ("word", 1), ("word word word", 3), ("wordwordword", 3), ("梯度裁剪梯度裁剪梯度", 2), ("a 梯度", 1)],
)
def test_lines_break_between_words(text: str, lines: int) -> None:
    assert lines_of(text, 14, text_width("裁剪梯度裁剪", 14) if "梯" in text else text_width("word_", 14)) == lines


def test_an_upper_part_that_is_drawn_in_inches_is_not_blank() -> None:
    figure = figures.canvas(7.6, 7.6)
    figures.inch_text(figure, 1.0, 6.8, "upper", size=60)
    figures.inch_text(figure, 1.0, 3.0, "lower", size=60)
    presentation = pptx.Presentation()
    sheet = Sheet.__new__(Sheet)
    sheet.deck, sheet.top = SimpleNamespace(texts=None), 1.0  # type: ignore[assignment]
    sheet.slide = presentation.slides.add_slide(presentation.slide_layouts[5])
    item: Any = SimpleNamespace(draw=lambda texts, width: figure, alt="upper and lower")
    sheet.picture(Drawing(item, Markup(""), (5.0, 7.6), 7.6 / 2.6), bottom=6.0)
    (shape,) = [one for one in sheet.slide.shapes if one.shape_type == 13]
    assert (shape.crop_top, shape.crop_bottom) == pytest.approx((0.0, 5.0 / 7.6), abs=1e-4)
    assert shape.width / shape.height == pytest.approx(7.6 / 2.6, rel=1e-3)
    pixels = imread(io.BytesIO(shape.image.blob))[..., :3]
    height = len(pixels)
    dark = pixels.max(axis=(1, 2)) - pixels.min(axis=(1, 2)) > 0.5
    assert dark[: round(height * 2.6 / 7.6)].any()
    assert not dark[round(height * 2.6 / 7.6) :].any()


def test_chinese_characters_are_counted_as_wide() -> None:
    assert text_width("梯度", 36) == pytest.approx(1.0)
    assert text_width("grad", 36) == pytest.approx(1.06)


def test_without_python_pptx_it_says_what_to_install(runs: Path, tmp_path: Path, monkeypatch: Any) -> None:
    real = builtins.__import__

    def missing(name: str, *more: Any) -> Any:
        if name == "pptx":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ReportError, match=r"pip install 'tightgrad\[pptx\]'"):
        build_powerpoint(runs, tmp_path)
