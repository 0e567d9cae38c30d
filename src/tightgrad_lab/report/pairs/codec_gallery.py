"""One real gradient through each family of codecs."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tightgrad_lab.report import cells, units
from tightgrad_lab.report.drawing import figures
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.results import ResultOf, notes, read_result
from tightgrad_lab.report.model import NARROW, Cell, Column, Content, FigureSpec, Layout, Table, measured_pair
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.schema import label, slug
from tightgrad_lab.schema.compression import CodecFamily, CodecGalleryFigure, CodecRow

Result = ResultOf[CodecGalleryFigure, CodecRow]

NAME = "codec_gallery"
FAMILIES = {
    "cast": "codec_gallery.figure.cast",
    "quantise": "codec_gallery.figure.quantise",
    "ternary": "codec_gallery.figure.ternary",
    "sign": "codec_gallery.figure.sign",
    "sparsify": "codec_gallery.figure.sparsify",
    "low_rank": "codec_gallery.figure.low_rank",
}
"""The families, in the order of the figure, and the keys of their names."""
Box = tuple[float, float, float, float]
_UNBIASED = 1.5
"""An averaged error up to this many times what independent errors would leave counts as falling with the root."""


def _bars(figure: Figure, box: Box, values: Sequence[float], color: str, most: float) -> Axes:
    """Values as bars from zero, side by side."""
    axes = figures.inch_axes(figure, *box)
    shown = [(place, value) for place, value in enumerate(values) if value]
    axes.bar([place for place, _ in shown], [value for _, value in shown], 0.72, color=color, linewidth=0)
    axes.axhline(0, color=figures.FAINT, linewidth=0.6, zorder=0)
    axes.set_xlim(-1, len(values))
    axes.set_ylim(-most, most)
    axes.set_axis_off()
    return axes


def draw(result: Result, texts: Texts, layout: Layout) -> Figure:
    """The values of the gradient one by one, then, for each family, what arrives of them and what is left behind."""
    narrow = layout is NARROW
    found = {family["family"]: family for family in result.figure["families"]}
    names = [name for name in FAMILIES if name in found]
    before: list[float] = list(result.figure["strip"])
    most = 1.08 * max(map(abs, before))
    left, right = (0.1, 0.1) if narrow else (1.95, 0.95)
    head, panel, gap, top = (0.36, 0.42, 0.04, 0.36) if narrow else (0.16, 0.46, 0.03, 0.12)
    width = layout.width - left - right
    height = top + panel + len(names) * (head + 2 * panel + gap) + (0.4 if narrow else 0.15)
    figure = figures.canvas(layout.width, height)
    y = height - top - panel
    _bars(figure, (left, y, width, panel), before, figures.MUTED, most)
    name = texts("codec_gallery.figure.strip", count=len(before))
    where = (0.1, height - 0.18) if narrow else (0.1, y + panel / 2)
    figures.inch_text(figure, *where, name, figures.SIZE_SMALL, va="center")
    for name in names:
        family = found[name]
        y -= head + panel
        axes = _bars(figure, (left, y, width, panel), family["strip"], figures.COLORS["compress"], most)
        axes.step(range(len(before)), before, where="mid", color=figures.MUTED, linewidth=0.5)
        if name == names[len(names) // 2]:
            axes.set_gid(figures.PART)
        _name(figure, family, texts, narrow, (left, y, panel))
        rest = [value - kept for value, kept in zip(before, family["strip"], strict=True)]
        _bars(figure, (left, y - gap - panel, width, panel), rest, figures.LINK, most)
        if not narrow:
            for middle, key in (
                (y + panel / 2, "codec_gallery.figure.after"),
                (y - gap - panel / 2, "codec_gallery.figure.residual"),
            ):
                said, x = texts(key), layout.width - right + 0.05
                figures.inch_text(figure, x, middle, said, figures.SIZE_SMALL, color=figures.MUTED, va="center")
        y -= gap + panel
    if narrow:
        legend = texts("codec_gallery.figure.legend")
        figures.inch_text(figure, 0.1, 0.16, legend, figures.SIZE_SMALL, color=figures.MUTED, va="center")
    return figure


def _name(figure: Figure, family: CodecFamily, texts: Texts, narrow: bool, place: tuple[float, float, float]) -> None:
    left, y, panel = place
    name, method = texts(FAMILIES[family["family"]]), str(family["method"])
    error = f"{texts('codec_gallery.figure.error')} {units.short_text(family['relative_error'])}"
    facts = f"{units.factor_text(family['compression_factor'])} · {error}"
    if narrow:
        figures.inch_text(figure, left, y + panel + 0.2, name, figures.SIZE_SMALL, va="center")
        figures.inch_text(figure, left, y + panel + 0.06, facts, 7.0, color=figures.MUTED, va="center")
        return
    for line, (text, color) in enumerate(((name, figures.INK), (method, figures.MUTED), (facts, figures.MUTED))):
        figures.inch_text(
            figure, 0.1, y + panel - 0.1 - 0.17 * line, text, figures.SIZE_SMALL, color=color, va="center"
        )


def figure(result: Result, texts: Texts) -> FigureSpec:
    """Histograms of one layer's gradient."""
    points = [
        texts(
            "codec_gallery.figure.point",
            family=texts(FAMILIES[family["family"]]),
            method=family["method"],
            factor=units.factor_text(family["compression_factor"]),
            error=units.short_text(family["relative_error"]),
            values=units.count_text(family["num_values"]),
        )
        for family in result.figure["families"]
    ]
    shape = " × ".join(str(size) for size in result.figure["shape"])
    facts = {
        "layer": result.figure["layer"],
        "shape": shape,
        "steps": result.settings["steps"],
        "count": len(result.figure["strip"]),
        "loss": units.number_text(float(result.figure["loss"])),
    }
    return FigureSpec(
        slug=slug("figure", NAME),
        label=label(NAME),
        title=texts("pair.codec_gallery.figure"),
        alt=texts("codec_gallery.figure.alt", shape=shape, points=" ".join(points)),
        caption=[texts("codec_gallery.figure.caption", **facts)],
        source=result.source,
        draw=lambda drawn_texts, layout: draw(result, drawn_texts, layout),
    )


def cancels(row: CodecRow, draws: int) -> bool | None:
    """Whether the average of `draws` encodings is nearer by about sqrt(draws) than one; None if not measured."""
    if row["averaged_error"] is None or not row["relative_error"]:
        return None
    return bool(row["averaged_error"] <= _UNBIASED * row["relative_error"] / draws**0.5)


def _answer(value: bool | None, texts: Texts) -> str:
    return units.MISSING if value is None else texts("codec_gallery.table.yes" if value else "codec_gallery.table.no")


def _speed(value: float | None) -> Cell:
    return cells.optional_cell(value, lambda speed: f"{units.number_text(speed / 1e9)}{units.NBSP}GB/s")


def table(result: Result, texts: Texts) -> Table:
    """A row for each codec."""
    columns = [
        Column("codec", texts("codec_gallery.column.codec"), numeric=False),
        Column("nbytes", texts("codec_gallery.column.nbytes"), "B"),
        Column("compression_factor", texts("col.compression_factor")),
        Column("relative_error", texts("codec_gallery.column.relative_error")),
        Column("cosine", texts("codec_gallery.column.cosine")),
        Column("unbiased", texts("codec_gallery.column.unbiased"), numeric=False),
        Column("cancels", texts("codec_gallery.column.cancels"), numeric=False),
        Column("averaged_error", texts("codec_gallery.column.averaged_error"), shown=False),
        Column("encode", texts("codec_gallery.column.encode"), "B/s"),
        Column("decode", texts("codec_gallery.column.decode"), "B/s"),
    ]
    draws = int(result.settings["draws"])
    rows = []
    for row in result.table:
        is_copy = row["id"] == "copy"
        measured = None if is_copy else cancels(row, draws)
        rows.append(
            [
                Cell(row["codec"], texts("codec_gallery.table.copy") if is_copy else row["codec"]),
                Cell(row["nbytes"], units.bytes_text(row["nbytes"])),
                Cell(row["compression_factor"], units.factor_text(row["compression_factor"])),
                Cell(row["relative_error"], units.short_text(row["relative_error"])),
                cells.optional_cell(row["cosine"], lambda value: f"{value:.3f}"),
                Cell(str(row["unbiased"]).lower(), _answer(None if is_copy else row["unbiased"], texts)),
                Cell(str(measured).lower(), _answer(measured, texts)),
                cells.optional_cell(row["averaged_error"], units.short_text),
                _speed(row["encode_bytes_per_second"]),
                _speed(row["decode_bytes_per_second"]),
            ]
        )
    facts = {
        "parameters": units.count_text(result.figure["num_parameters"]),
        "steps": result.settings["steps"],
        "draws": draws,
        "threads": result.settings["threads"],
    }
    return Table(
        slug=slug("table", NAME),
        label=label(NAME),
        title=texts("pair.codec_gallery.table"),
        caption=[texts("codec_gallery.table.caption", **facts)],
        columns=columns,
        rows=rows,
        source=result.source,
        notes=[texts("codec_gallery.table.note"), *notes(result, texts)],
    )


def content(runs: Runs, texts: Texts) -> Content | None:
    """Both, if the experiment has been run."""
    result = read_result(runs.root, NAME)
    if result is None or "strip" not in result.figure:  # of an older version, without single values
        return None
    return Content([figure(result, texts), table(result, texts)])


PAIR = measured_pair(NAME, chapter=3, content=content)
