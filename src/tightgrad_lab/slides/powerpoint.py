"""The deck as PowerPoint files: text and tables that can be edited, figures as pictures, notes for the speaker.

Needs python-pptx: `pip install 'tightgrad[pptx]'`.
"""

import io
import math
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tightgrad_lab.instruments import words as instrument_words
from tightgrad_lab.report.drawing import figures
from tightgrad_lab.report.errors import ReportError
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.model import WIDE, Table
from tightgrad_lab.report.texts import LANGUAGES, load
from tightgrad_lab.slides.deck import Deck, Slide
from tightgrad_lab.slides.plates import Drawing, few, legible, within
from tightgrad_lab.slides.words import load_words

WIDTH, HEIGHT, MARGIN = 13.333, 7.5, 0.6
"""Of a slide, in inches."""
PIXELS, BESIDE = 96, 4.0
"""Pixels of an inch on a slide 1280 pixels wide; from where on a figure stands that has its points on its left."""
INK, MUTED = "24272C", "5E646E"
FONT = {"en": "Calibri", "zh": "Microsoft YaHei"}
LINE = {"en": 1.3, "zh": 1.5}
"""Height of a line over the size of its type, with the taller fonts that stand in where those above are missing."""
SIZES = (15, 14, 13, 12)
"""Of the type of a table, in points: it takes the largest with which it fits; with the last it takes several slides."""
Rows = Sequence[Sequence[str]]


def build_powerpoint(runs: Path, out: Path) -> list[Path]:
    """Write slides.en.pptx and slides.zh.pptx into the folder of the report; return their paths, English first.

    Raises:
        ReportError: the folder is missing, a file is malformed, or python-pptx is not installed.
    """
    try:
        import pptx
    except ImportError as error:
        raise ReportError("PowerPoint files need python-pptx: pip install 'tightgrad[pptx]'.") from error
    folder = Runs(Path(runs))
    Path(out).mkdir(parents=True, exist_ok=True)
    written = []
    for language in LANGUAGES:
        deck = Deck(folder, load(language), load_words(language))
        presentation: Any = pptx.Presentation()
        presentation.slide_width, presentation.slide_height = _inches(WIDTH), _inches(HEIGHT)
        for one in deck.slides():
            rest: Rows = ()
            while (sheet := Sheet(presentation, deck, one, rest)).fill():
                rest = sheet.rest
        path = Path(out) / f"slides.{language}.pptx"
        presentation.save(str(path))
        written.append(path)
    return written


def _inches(value: float) -> int:
    return round(914400 * value)


def text_width(text: str, size: float) -> float:
    """About how wide a line of text is, in inches; Chinese characters are twice as wide as others."""
    letters = sum(1.0 if unicodedata.east_asian_width(one) in "WF" else 0.53 for one in text)
    return letters * size / 72


def lines_of(text: str, size: float, width: float) -> int:
    """How many lines a text takes in a width in inches, if lines break between words and Chinese characters."""
    lines, at = 1, 0.0
    for word in re.findall(r"[\u2e80-\uffef]|[^\s\u2e80-\uffef]+\s*|\s+", text):
        wide = text_width(word.rstrip(), size)
        if at and at + wide > width:
            lines, at = lines + 1, 0.0
        lines += int(wide // width)  # a word longer than the line is broken
        at += text_width(word, size) % width if wide > width else text_width(word, size)
    return lines


class Sheet:
    """Fills one slide.

    Args:
        presentation: of python-pptx, to which the slide is added.
        deck: it belongs to.
        one: what stands on it.
        rows: those of its table that did not fit on the slides before; none on the first.
    """

    def __init__(self, presentation: Any, deck: Deck, one: Slide, rows: Rows = ()) -> None:
        self.deck = deck
        self.one = one
        self.rows = rows
        self.rest: Rows = ()
        self.slide = presentation.slides.add_slide(presentation.slide_layouts[5])
        self.top = 1.35

    def fill(self) -> bool:
        """Write the heading, the content and the notes; return whether rows are left for another slide."""
        title, first = self.slide.shapes.title, self.one.kind == "title"
        place = (MARGIN, 2.0 if first else 0.45, 12.1, 0.9 if first else 0.75)
        title.left, title.top, title.width, title.height = (_inches(one) for one in place)
        more = self.deck.words("continued") if self.rows else ""
        self._write(title.text_frame, [self.one.title + more], 40 if first else 28, bold=True)
        if not first:
            self.text([self.one.above], 12, at=(MARGIN, 0.2, 12.1, 0.3), color=MUTED)
        getattr(self, f"_{self.one.kind}")(self.one.content)
        self.slide.notes_slide.notes_text_frame.text = "\n".join(self._notes())
        return bool(self.rest)

    def _notes(self) -> list[str]:
        spoken, words = self.one.spoken, self.deck.words
        lesson = words("lesson", number=spoken.lesson)
        said = [words("minutes", minutes=spoken.minutes, lesson=lesson, starts=spoken.starts), *spoken.notes]
        if asked := self.one.content.get("asked"):
            said += [f"{letter}. {found.striptags()}" for letter, _, _, found in asked.choices]
            said.append(asked.answer.striptags())
        return said

    def _write(
        self, frame: Any, lines: Sequence[str], size: float, *, bold: bool = False, color: str = INK, mark: str = ""
    ) -> None:
        from pptx.dml.color import RGBColor
        from pptx.enum.text import PP_ALIGN
        from pptx.util import Pt

        rgb: Any = RGBColor  # its constructor has no types
        frame.word_wrap = True
        for place, line in enumerate(lines):
            paragraph = frame.paragraphs[0] if place == 0 else frame.add_paragraph()
            paragraph.alignment = PP_ALIGN.LEFT
            run = paragraph.add_run()
            run.text = mark + line
            run.font.size, run.font.bold = Pt(size), bold
            run.font.color.rgb = rgb(*bytes.fromhex(color))
            run.font.name = FONT[self.deck.texts.language]
            properties = run._r.get_or_add_rPr()
            far_east = properties.makeelement(
                "{http://schemas.openxmlformats.org/drawingml/2006/main}ea", {"typeface": FONT["zh"]}
            )
            properties.append(far_east)

    def text(
        self,
        lines: Sequence[str],
        size: float,
        *,
        at: tuple[float, float, float, float] | None = None,
        color: str = INK,
        mark: str = "",
    ) -> None:
        """Write lines into a box: at a place, or below what stands there already."""
        width = at[2] if at else WIDTH - 2 * MARGIN
        rows = sum(math.ceil(text_width(mark + line, size) / (width - 0.25)) for line in lines)
        high = rows * size * LINE[self.deck.texts.language] / 72 + 0.15
        left, top = (at[0], at[1]) if at else (MARGIN, self.top)
        box = self.slide.shapes.add_textbox(*(_inches(one) for one in (left, top, width, at[3] if at else high)))
        self._write(box.text_frame, lines, size, color=color, mark=mark)
        if at is None:
            self.top += high + 0.08

    def table(self, heads: Sequence[str], rows: Rows, *, bottom: float) -> None:
        """Write a table that ends above a height; what does not fit is left for the next slide."""
        from pptx.util import Pt

        rows = self.rows or rows
        width = WIDTH - 2 * MARGIN
        columns = [[line[place] for line in [heads, *rows]] for place in range(len(heads))]
        needs = [min(max(max(text_width(cell, 12) for cell in column), 0.7), 12.0) ** 0.6 for column in columns]
        words = [max(text_width(word, 12) for cell in column for word in [*cell.split(), ""]) for column in columns]
        least = [min(word, 1.6) + 0.25 for word in words]
        free = max(0.0, width - sum(least))
        widths = [(one + free * need / sum(needs)) for one, need in zip(least, needs, strict=True)]
        widths = [one * width / sum(widths) for one in widths]
        lines, room = [heads, *rows], bottom - self.top
        size = next((size for size in SIZES if sum(self._heights(lines, widths, size)) < room), SIZES[-1])
        heights = self._heights(lines, widths, size)
        while len(rows) > 1 and sum(heights[: len(rows) + 1]) > room:
            rows = rows[:-1]
        self.rest = [*lines[len(rows) + 1 :]]
        heights = heights[: len(rows) + 1]
        shape = self.slide.shapes.add_table(
            len(rows) + 1, len(heads), *(_inches(one) for one in (MARGIN, self.top, width, sum(heights)))
        )
        for column, one in zip(shape.table.columns, widths, strict=True):
            column.width = _inches(one)
        for place, line in enumerate([heads, *rows]):
            shape.table.rows[place].height = _inches(heights[place])
            for column, cell in enumerate(line):
                target = shape.table.cell(place, column)
                target.margin_top = target.margin_bottom = Pt(2)
                self._write(target.text_frame, [cell], size, bold=place == 0, color="FFFFFF" if place == 0 else INK)
        self.top += sum(heights) + 0.1

    def _heights(self, lines: Rows, widths: Sequence[float], size: float) -> list[float]:
        def rows(line: Sequence[str]) -> int:
            return max(lines_of(cell, size, width - 0.22) for cell, width in zip(line, widths, strict=True))

        return [rows(line) * size * LINE[self.deck.texts.language] / 72 + 0.09 for line in lines]

    def picture(self, drawing: Drawing, *, bottom: float, left: float = MARGIN) -> None:
        """Place a figure, or its part that this slide shows, as large as it fits to the right of a place."""
        wide, tall = WIDTH - MARGIN - left, bottom - self.top
        with figures.style():
            figure = drawing.item.draw(self.deck.texts, WIDE)
            out, whole, (low, high) = io.BytesIO(), figure.get_figheight(), drawing.band
            room = (PIXELS * wide, PIXELS * tall)
            with legible(figure, drawing.band, room), within(figure, drawing.band):
                figure.savefig(out, format="png", dpi=220, metadata={"Software": None})
        width = min(wide, tall * drawing.ratio)
        place = (_inches(one) for one in (left + (wide - width) / 2, self.top, width, width / drawing.ratio))
        shape = self.slide.shapes.add_picture(out, *place)
        # Cropped here: matplotlib's bbox_inches does not move what is placed in inches.
        shape.crop_top, shape.crop_bottom = 1 - high / whole, low / whole
        shape._element.nvPicPr.cNvPr.set("descr", drawing.item.alt)

    def _source(self, item: Any) -> None:
        patterns = " ".join(item.source.patterns)
        said = f"{self.deck.words('source')} {patterns} · {self.deck.words('again')} {item.source.command}"
        self.text([said], 10, at=(MARGIN, 6.72, 12.1, 0.3), color=MUTED)

    def _missing(self, content: dict[str, Any], kind: str) -> None:
        pair = content["plates"].pair
        self.text([self.deck.texts(f"pair.{pair.name}.{kind}.shows")], 18)
        self.text([f"{self.deck.words('missing')} {pair.command}"], 14, color=MUTED)

    def _title(self, content: dict[str, Any]) -> None:
        texts = self.deck.texts
        self.text([texts("site.course")], 16, color=MUTED)
        self.top = 3.0
        self.text([texts("site.subtitle")], 24, color=MUTED)
        self.text([f"{self.deck.words('date')} {content['date']}"], 16, color=MUTED)

    def _contents(self, content: dict[str, Any]) -> None:
        for half in range(2):
            lines = []
            for chapter in content["chapters"][4 * half : 4 * half + 4]:
                lines.append(f"{chapter.number}  {chapter.title}")
                lines += [f"     {section.title}" for section in chapter.sections]
            self.text(lines, 15, at=(MARGIN + 6.1 * half, 1.5, 6.0, 5.5))

    def _plan(self, content: dict[str, Any]) -> None:
        words = self.deck.words
        rows = [
            [lesson.title, f"{'; '.join(parts)} ({words('plan.range', first=first, last=last)})", str(lesson.minutes)]
            for lesson, parts, first, last in content["rows"]
        ]
        self.table([words("plan.lesson"), words("plan.parts"), words("plan.minutes")], rows, bottom=6.8)

    def _predict(self, content: dict[str, Any]) -> None:
        asked = content["asked"]
        self.text([self.deck.words("predict")], 14, color=MUTED)
        self.text([asked.question.striptags()], 22)
        self.text([f"{letter}   {text.striptags()}" for letter, text, _, _ in asked.choices], 20)
        self.text([self.deck.words("predict.next")], 14, color=MUTED)

    def _points(self, content: dict[str, Any]) -> None:
        drawing, paper, left = content["figure"], content["paper"], MARGIN
        if self.one.spoken.points and drawing is not None and drawing.beside:
            self.text(self.one.spoken.points, 15, at=(MARGIN, self.top, BESIDE - MARGIN - 0.2, 4.0), mark="• ")
            left = BESIDE
        elif self.one.spoken.points:
            self.text(self.one.spoken.points, 15, mark="• ")
        if drawing is None:
            self._missing(content, "figure")
        else:
            label = self.deck.texts("figure.label", label=drawing.item.label)
            more = self.deck.words("figure.more") if self.one.kind == "figure" else ""
            self.text([f"{label}  {drawing.item.title}{more}"], 14, at=(left, self.top, WIDTH - MARGIN - left, 0.38))
            self.top += 0.4
            self.picture(drawing, bottom=6.7, left=left)
            self._source(drawing.item)
        said = f"{self.deck.words('paper')} {paper.authors} ({paper.year}). {paper.title}. {paper.venue}"
        self.text([said], 10, at=(MARGIN, 6.98, 12.1, 0.3), color=MUTED)

    _figure = _points

    def _table(self, content: dict[str, Any]) -> None:
        table: Table | None = content["plates"].table
        if table is None:
            self._missing(content, "table")
            return
        self.text([f"{self.deck.texts('table.label', label=table.label)}  {table.title}"], 14)
        said = [] if self.rows else [one.striptags() for one in content["measured"]]
        lines = sum(lines_of(one, 14, 11.8) for one in said)
        shown = [place for place, column in enumerate(table.columns) if column.shown]
        rows = [
            [
                f"{_plain(row[place].text)} ± {row[place].margin}" if row[place].margin else _plain(row[place].text)
                for place in shown
            ]
            for row in few(table.rows)
        ]
        self.table([table.columns[place].heading for place in shown], rows, bottom=6.1 - lines * 0.3)
        if self.rest:
            self.text([self.deck.words("continues")], 11, color=MUTED)
        elif len(rows) < len(table.rows):
            label = self.deck.texts("table.label", label=table.label)
            self.text([f"{self.deck.words('rows', shown=len(rows), count=len(table.rows))} {label}"], 11, color=MUTED)
        if said:
            self.text(said, 14)
        self._source(table)

    def _instrument(self, content: dict[str, Any]) -> None:
        self.text([instrument_words(self.deck.texts.language)[f"{self.one.spoken.name}.try"]], 20)
        page = f"slides.{self.deck.texts.language}.html"
        self.text([self.deck.words("pptx.live", page=f"{page}#/{self.one.anchor}")], 14, color=MUTED)

    def _summary(self, content: dict[str, Any]) -> None:
        self.text(self.one.spoken.points, 17, mark="• ")
        self.text(_items(content["sentences"]), 20, mark="• ")

    def _verdicts(self, content: dict[str, Any]) -> None:
        texts = self.deck.texts
        rows = [[_plain(claim.text), texts(f"verdict.{claim.verdict}")] for claim in content["claims"]]
        self.table([self.deck.words("verdicts"), texts("col.verdict")], rows, bottom=7.2)

    def _references(self, content: dict[str, Any]) -> None:
        papers = content["papers"]
        self.text([f"{one.authors} ({one.year}). {one.title}. {one.venue}. {one.url}" for one in papers], 13)

    def _discussion(self, content: dict[str, Any]) -> None:
        self.text([f"{place}. {one}" for place, one in enumerate(_items(content["questions"]), 1)], 20)

    def _questions(self, content: dict[str, Any]) -> None:
        self.text(self.one.spoken.points, 17, mark="• ")
        self.text([one.title.striptags() for one in content["questions"]], 17, mark="• ")


def _plain(text: Any) -> str:
    return " ".join(str(getattr(text, "striptags", lambda: text)()).split())


def _items(html: Any) -> list[str]:
    """The entries of a list in HTML."""
    from markupsafe import Markup

    return [Markup(one).striptags() for one in str(html).split("<li>")[1:]]
