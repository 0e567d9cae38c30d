"""A heading's figure and table as a slide shows them, and the sentences that the book has about them."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from tightgrad_lab.report.book.library import Library, ShownSection
from tightgrad_lab.report.book.tables import arranged
from tightgrad_lab.report.drawing import figures
from tightgrad_lab.report.measured.published import published
from tightgrad_lab.report.model import WIDE, FigureSpec, Pair, Table
from tightgrad_lab.report.texts import Texts

Row = TypeVar("Row")
MOST_ROWS, FEW_ROWS = 8, 6
"""A table of at most so many rows is shown whole; of a longer one so few. The browser leaves out what does not fit."""
FLAT, TALL = 1.75, 1.3
"""Width over height from which on a figure fills the slide's width; a taller one stands beside its points, and one that
is taller still is cut into two parts, each on a slide of its own: side by side they would be too small to read."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure or its upper or lower part, drawn; `band` is from which height to which it reaches, in inches."""

    item: FigureSpec
    svg: Markup
    band: tuple[float, float]
    ratio: float

    @property
    def beside(self) -> bool:
        """Whether the points stand beside it."""
        return self.ratio < FLAT


@dataclass(frozen=True, slots=True)
class Plates:
    """What a pair has to show; nothing for what has not been measured."""

    pair: Pair
    figures: tuple[Drawing, ...]
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
    return Plates(pair, tuple(_drawings(figure, texts)) if figure else (), table)


def few(rows: Sequence[Row]) -> list[Row]:
    """Return rows from all over a table, the first and the last among them."""
    if len(rows) <= MOST_ROWS:
        return list(rows)
    return [rows[round(place * (len(rows) - 1) / (FEW_ROWS - 1))] for place in range(FEW_ROWS)]


def _drawings(item: FigureSpec, texts: Texts) -> Iterator[Drawing]:
    with figures.style():
        drawn = item.draw(texts, WIDE)
        for number, band in enumerate(bands(drawn)):
            svg = part(drawn, f"slide-{item.slug}-{number}", item.alt, band)
            yield Drawing(item, svg, band, float(drawn.get_figwidth() / (band[1] - band[0])))


def bands(figure: Figure) -> list[tuple[float, float]]:
    """Return from which height to which the parts of a figure reach, in inches, the upper one first."""
    width, height = (float(one) for one in figure.get_size_inches())
    place = cut(figure) if width / height < TALL else None
    return [(0.0, height)] if place is None else [(place, height), (0.0, place)]


def _boxes(figure: Figure) -> list[tuple[Artist, float, float]]:
    """What is drawn in a figure, and from which height to which it reaches, in inches."""
    agg: Any = figure.canvas
    renderer = agg.get_renderer()
    boxes = [(one, one.get_tightbbox(renderer)) for one in figure.get_children() if one is not figure.patch]
    return [(one, float(box.y0) / figure.dpi, float(box.y1) / figure.dpi) for one, box in boxes if box is not None]


def cut(figure: Figure) -> float | None:
    """Return the height in inches at which a figure is cut in two: just above what is marked as its second part."""
    return next((high + 0.05 for one, _, high in _boxes(figure) if one.get_gid() == figures.PART), None)


@contextmanager
def within(figure: Figure, band: tuple[float, float]) -> Iterator[Bbox]:
    """Hide what lies outside a band of heights, in inches; yields the band as a box."""
    low, high = band
    hidden = [one for one, y0, y1 in _boxes(figure) if one.get_visible() and not low <= (y0 + y1) / 2 <= high]
    for one in hidden:
        one.set_visible(False)
    yield Bbox([[0.0, low], [figure.get_figwidth(), high]])
    for one in hidden:
        one.set_visible(True)


def part(figure: Figure, prefix: str, alt: str, band: tuple[float, float]) -> Markup:
    """Draw what lies in a band of heights, in inches, and nothing else."""
    with within(figure, band) as box:
        svg = figures.inline_svg(figures.to_svg(figure), prefix, alt)
    view = (0.0, figure.get_figheight() - box.y1, box.width, box.height)
    shown = " ".join(f"{72 * one:.2f}" for one in view)
    return Markup(re.sub(r'viewBox="[^"]+"', f'viewBox="{shown}"', svg, count=1))


def sentences(section: ShownSection) -> tuple[Markup, list[Markup]]:
    """What the book says one sees in a section's figure, and the sentences with what was measured."""
    kinds = [part.kind for part in section.parts]
    after = section.parts[kinds.index("figure") + 1]
    html = str(after.body).partition("<h4>")[0] if after.kind == "html" else ""
    found = [Markup(one) for one in re.findall(r"<p>(.*?)</p>", html, flags=re.DOTALL)]
    return (found[0], found[1:]) if found else (Markup(""), [])
