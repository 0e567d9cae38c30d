"""The look of the figures, and how a matplotlib figure becomes an SVG that the page can theme."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Wedge
from matplotlib.text import Text

FONT_FILE = Path(__file__).parents[1] / "fonts" / "NotoSansSC-subset.otf"
FONT = "TightGrad Sans SC"
FONT_STACK = "'TightGrad Sans SC', 'Noto Sans CJK SC', 'PingFang SC', 'Microsoft YaHei', sans-serif"

# Light values; the page replaces each by the CSS variable of that name, so every value must be unique.
COLORS = {
    "ink": "#24272c",
    "muted": "#59606b",
    "faint": "#d8d3c8",
    "paper": "#fdfcfa",
    "panel": "#f4f1ea",
    "band": "#ece7dc",
    "link": "#a3a9b2",
    "clip": "#b4551d",
    "accumulate": "#1b6b86",
    "compress": "#7b3f92",
}
INK, MUTED, FAINT, PAPER, PANEL, BAND, LINK = (COLORS[name] for name in list(COLORS)[:7])
SECTORS = {"clip": (90.0, 210.0), "accumulate": (210.0, 330.0), "compress": (330.0, 450.0)}

SIZE_LABEL = 9.0
SIZE_SMALL = 8.0


@cache
def _register_font() -> None:
    fontManager.addfont(FONT_FILE)


@contextmanager
def style() -> Iterator[None]:
    """The rcParams of every figure."""
    _register_font()
    settings: dict[Any, Any] = {
        "font.family": [FONT],
        "font.size": SIZE_LABEL,
        "text.color": INK,
        "text.usetex": False,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": MUTED,
        "axes.facecolor": "none",
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.unicode_minus": True,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "xtick.labelsize": SIZE_SMALL,
        "ytick.labelsize": SIZE_SMALL,
        "grid.color": FAINT,
        "grid.linewidth": 0.6,
        "figure.facecolor": PAPER,
        "savefig.facecolor": PAPER,
        "svg.fonttype": "none",
        "svg.hashsalt": "tightgrad",
    }
    with mpl.rc_context(settings):
        yield


PART = "part"
"""The gid of the heading of a tall figure's second part; a slide, which is wide, cuts the figure above it."""


def canvas(width: float, height: float) -> Figure:
    """An empty figure of a size in inches."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def text_size(figure: Figure, text: str, size: float) -> tuple[float, float]:
    """Width and height in inches of a text that is not drawn."""
    probe = Text(0, 0, text, fontsize=size, linespacing=1.25)
    probe.set_figure(figure)
    agg: Any = figure.canvas
    box = probe.get_window_extent(agg.get_renderer())
    return box.width / figure.dpi, box.height / figure.dpi


def inch_text(figure: Figure, x: float, y: float, text: str, size: float = SIZE_LABEL, **style: Any) -> Text:
    """Text at a position in inches from the lower left corner of the figure."""
    return figure.text(x, y, text, fontsize=size, transform=figure.dpi_scale_trans, **style)


def inch_line(figure: Figure, xs: Sequence[float], ys: Sequence[float], **style: Any) -> None:
    """A line through points in inches."""
    figure.add_artist(Line2D(xs, ys, transform=figure.dpi_scale_trans, **style))


def dot(figure: Figure, x: float, y: float, radius: float, combination: str, zorder: float = 3) -> None:
    """A combination as a circle, in inches, whose filled sectors are the techniques that were on."""
    to_inches = figure.dpi_scale_trans
    present = combination.split("+")
    figure.add_artist(Circle((x, y), radius, facecolor=PAPER, edgecolor="none", transform=to_inches, zorder=zorder))
    for technique, (start, stop) in SECTORS.items():
        if technique in present:
            figure.add_artist(
                Wedge(
                    (x, y),
                    radius,
                    start,
                    stop,
                    facecolor=COLORS[technique],
                    edgecolor=PAPER,
                    linewidth=0.7,
                    transform=to_inches,
                    zorder=zorder,
                )
            )
    figure.add_artist(
        Circle(
            (x, y), radius, facecolor="none", edgecolor=MUTED, linewidth=0.9, transform=to_inches, zorder=zorder + 0.1
        )
    )


def inch_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes whose box is given in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def with_room_above(figure: Figure, more: float) -> None:
    """Make a figure higher by some inches; what is drawn stays where it is, seen from below."""
    across, old = figure.get_size_inches()
    boxes = [axes.get_position() for axes in figure.axes]
    figure.set_size_inches(across, old + more)
    share = old / (old + more)
    for axes, box in zip(figure.axes, boxes, strict=True):
        axes.set_position((box.x0, box.y0 * share, box.width, box.height * share))


def to_svg(figure: Figure) -> str:
    """A standalone SVG with its text as text."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue().replace(f"'{FONT}'", FONT_STACK)


def save_png(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="png", dpi=200, metadata={"Software": None})


def inline_svg(svg: str, prefix: str, label: str) -> Markup:
    """The SVG for the inside of a page: unique ids, colours as variables, an accessible name, its own size dropped."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = re.sub(r"url\(#", f"url(#{prefix}-", body)
    body = re.sub(r'href="#', f'href="#{prefix}-', body)
    for name, value in COLORS.items():
        body = body.replace(value, f"var(--fig-{name}, {value})")
    view_box = re.search(r'viewBox="([^"]+)"', body)
    assert view_box is not None
    opening = Markup('<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" ')
    opening += Markup('viewBox="{}" role="img" aria-label="{}">').format(view_box.group(1), label)
    return opening + Markup(re.sub(r"^<svg[^>]*>", "", body))
