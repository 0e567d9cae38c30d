"""A heading's figure and table as a slide shows them, and the sentences that the book has about them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from markupsafe import Markup

from tightgrad_lab.report import figures
from tightgrad_lab.report.book.library import Library, ShownSection
from tightgrad_lab.report.book.tables import arranged
from tightgrad_lab.report.model import WIDE, FigureSpec, Pair, Table
from tightgrad_lab.report.published import published
from tightgrad_lab.report.texts import Texts

Row = TypeVar("Row")
MOST_ROWS, FEW_ROWS = 8, 6
"""A table of at most so many rows is shown whole; of a longer one so few. The browser leaves out what does not fit."""
FLAT = 1.75
"""Width over height from which on a figure fills the slide's width; a taller one stands beside its points."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure, drawn."""

    item: FigureSpec
    svg: Markup
    ratio: float

    @property
    def beside(self) -> bool:
        """Whether the points stand beside it."""
        return self.ratio < FLAT


@dataclass(frozen=True, slots=True)
class Plates:
    """What a pair has to show; None for what has not been measured."""

    pair: Pair
    figure: Drawing | None
    table: Table | None


def plates(library: Library, pair: Pair) -> Plates:
    """Draw the first figure and take the first table of a pair: this machine's own, else the published ones.

    The first table is the one in words, if the course asks for one.
    """
    runs, texts = library.runs, library.texts
    content = pair.content(runs, texts) if pair.content else None
    blocks = content.blocks if content else []
    if not blocks and (full := published(runs, pair, texts)) is not None:
        blocks = full.items
    blocks = arranged(library, pair.name, blocks)
    figure = next((item for item in blocks if isinstance(item, FigureSpec)), None)
    table = next((item for item in blocks if isinstance(item, Table)), None)
    return Plates(pair, _drawing(figure, texts) if figure else None, table)


def few(rows: Sequence[Row]) -> list[Row]:
    """Return rows from all over a table, the first and the last among them."""
    if len(rows) <= MOST_ROWS:
        return list(rows)
    return [rows[round(place * (len(rows) - 1) / (FEW_ROWS - 1))] for place in range(FEW_ROWS)]


def _drawing(item: FigureSpec, texts: Texts) -> Drawing:
    with figures.style():
        drawn = item.draw(texts, WIDE)
        svg = figures.inline_svg(figures.to_svg(drawn), f"slide-{item.slug}", item.alt)
    width, height = drawn.get_size_inches()
    return Drawing(item, svg, float(width / height))


def sentences(section: ShownSection) -> tuple[Markup, list[Markup]]:
    """What the book says one sees in a section's figure, and the sentences with what was measured."""
    kinds = [part.kind for part in section.parts]
    after = section.parts[kinds.index("figure") + 1]
    html = str(after.body).partition("<h4>")[0] if after.kind == "html" else ""
    found = [Markup(one) for one in re.findall(r"<p>(.*?)</p>", html, flags=re.DOTALL)]
    return (found[0], found[1:]) if found else (Markup(""), [])
