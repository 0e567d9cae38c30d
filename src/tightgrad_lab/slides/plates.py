"""A heading's figure and table as a slide shows them, and the sentences that the book has about them."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.text import Text
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
FLAT = 1.75
"""Width over height from which on a figure fills the slide's width; a taller one stands beside its points."""
BELOW, BESIDE, ALONE = (1168, 405), (832, 480), (1168, 515)
"""Pixels of a slide of 1280 x 720 that a figure has below its points, beside them, and without points."""
LEAST = 12.1
"""Pixels that the smallest text has on such a slide. A figure whose text would be smaller is cut in two, if it has a
second part, each on a slide of its own; what is smaller even then is written larger."""
EXPONENT = 0.7
"""How large matplotlib writes an exponent, beside what it belongs to."""


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
            ratio = float(drawn.get_figwidth() / (band[1] - band[0]))
            with legible(drawn, band, ALONE if number else room(ratio)):
                svg = part(drawn, f"slide-{item.slug}-{number}", item.alt, band)
            yield Drawing(item, svg, band, ratio)


def bands(figure: Figure) -> list[tuple[float, float]]:
    """Return from which height to which the parts of a figure reach, in inches, the upper one first."""
    width, height = (float(one) for one in figure.get_size_inches())
    whole = (0.0, height)
    small = min((size for _, size in _sizes(figure)), default=LEAST) < _least(figure, whole, room(width / height))
    place = cut(figure) if small else None
    return [whole] if place is None else [(place, height), (0.0, place)]


def room(ratio: float) -> tuple[int, int]:
    """The pixels that a slide with points has for a figure of a width over its height."""
    return BESIDE if ratio < FLAT else BELOW


@contextmanager
def legible(figure: Figure, band: tuple[float, float], room: tuple[float, float]) -> Iterator[None]:
    """Write the smallest texts larger, so that they can be read when a band of the figure fills a room in pixels."""
    least = _least(figure, band, room)
    small = [(text, float(text.get_fontsize()), size) for text, size in _sizes(figure) if size < least]
    for text, own, size in small:
        text.set_fontsize(own * least / size)
    yield
    for text, own, _ in small:
        text.set_fontsize(own)


def _sizes(figure: Figure) -> list[tuple[Text, float]]:
    """Every text that is drawn, and the size of its smallest letter in points."""
    figure.draw_without_rendering()  # makes the labels of the ticks
    texts = [one for one in figure.findobj(Text) if one.get_visible() and one.get_text()]
    return [(one, float(one.get_fontsize()) * (EXPONENT if "^" in one.get_text() else 1.0)) for one in texts]


def _least(figure: Figure, band: tuple[float, float], room: tuple[float, float]) -> float:
    """The points that come out as the fewest pixels when a band of the figure fills a room."""
    scale = min(room[0] / figure.get_figwidth(), room[1] / (band[1] - band[0])) / 72
    return LEAST / scale


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
    boxes = [] if band == (0.0, figure.get_figheight()) else _boxes(figure)
    hidden = [one for one, y0, y1 in boxes if one.get_visible() and not low <= (y0 + y1) / 2 <= high]
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
