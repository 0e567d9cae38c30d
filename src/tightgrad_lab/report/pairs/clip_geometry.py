"""One real gradient before and after clipping, and every method compared."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Arc, FancyArrowPatch
from matplotlib.ticker import FixedLocator, NullLocator

from tightgrad_lab.report import cells, units
from tightgrad_lab.report.drawing import figures
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.results import ResultOf, notes, read_result
from tightgrad_lab.report.model import NARROW, Cell, Column, Content, FigureSpec, Layout, Table, measured_pair
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.schema import label, slug
from tightgrad_lab.schema.clipping import ClipGeometryFigure, ClipGeometryRow

Result = ResultOf[ClipGeometryFigure, ClipGeometryRow]

NAME = "clip_geometry"
METHODS = {
    "global_norm": "clip_geometry.table.global_norm",
    "value": "clip_geometry.table.value",
    "per_tensor_norm": "clip_geometry.table.per_tensor_norm",
    "block_rms": "clip_geometry.table.block_rms",
    "agc": "clip_geometry.table.agc",
    "autoclip": "clip_geometry.table.autoclip",
    "zclip": "clip_geometry.table.zclip",
    "adagc": "clip_geometry.table.adagc",
    "chain": "clip_geometry.table.chain",
    "by_name": "clip_geometry.table.by_name",
}
"""The methods, in the order in which they are shown, and the keys of their names."""
WHEN = {
    "global_norm": "clip_geometry.table.when.global_norm",
    "value": "clip_geometry.table.when.value",
    "per_tensor_norm": "clip_geometry.table.when.per_tensor_norm",
    "block_rms": "clip_geometry.table.when.block_rms",
    "agc": "clip_geometry.table.when.agc",
    "autoclip": "clip_geometry.table.when.autoclip",
    "zclip": "clip_geometry.table.when.zclip",
    "adagc": "clip_geometry.table.when.adagc",
    "chain": "clip_geometry.table.when.chain",
    "by_name": "clip_geometry.table.when.by_name",
}
HISTOGRAMS = {
    "before": "clip_geometry.figure.before",
    "norm": "clip_geometry.figure.norm",
    "value": "clip_geometry.figure.value",
}
_FLOOR = 1e-5
_KEEPS_DIRECTION = 1 - 1e-6


def _colors() -> dict[str, str]:
    return {"before": figures.MUTED, "norm": figures.COLORS["clip"], "value": figures.COLORS["compress"]}


def _angle(cosine: float) -> float:
    """In radians."""
    return math.acos(min(1.0, max(-1.0, cosine)))


def _arrows(figure: Figure, box: tuple[float, float, float, float], result: Result, texts: Texts) -> None:
    """The gradient, norm-clipped and value-clipped, in the plane of the first and the last, in true proportion."""
    width, height = box[2:]
    axes = figures.inch_axes(figure, *box)
    reach = 1.08
    axes.set_xlim(-0.06, reach)
    axes.set_ylim(-0.14, (reach + 0.06) * height / width - 0.14)
    axes.set_axis_off()
    colors = _colors()
    ways = result.figure["ways"]
    tilt = _angle(ways["value"]["cosine"])
    half = float(ways["norm"]["length"])
    axes.add_patch(
        Arc((0, 0), 2 * half, 2 * half, theta1=0, theta2=90, color=figures.LINK, linewidth=0.8, linestyle=(0, (3, 2)))
    )
    lengths = {"before": (1.0, 0.0), "norm": (half, 0.0), "value": (float(ways["value"]["length"]), tilt)}
    for name, (length, angle) in lengths.items():
        tip = (length * math.cos(angle), length * math.sin(angle))
        axes.add_patch(
            FancyArrowPatch(
                (0, 0),
                tip,
                arrowstyle="-|>",
                mutation_scale=9,
                shrinkA=0,
                shrinkB=0,
                color=colors[name],
                linewidth=1.3 if name == "before" else 2.2,
                zorder=3 if name == "before" else 4,
            )
        )
    at = {"before": (1.0, -0.075, "right"), "norm": (half, -0.075, "right")}
    for name, (left, up, side) in at.items():
        axes.text(
            left, up, texts(HISTOGRAMS[name]), fontsize=figures.SIZE_SMALL, color=colors[name], ha=side, va="center"
        )
    length, angle = lengths["value"]
    axes.text(
        length * math.cos(angle) + 0.04,
        length * math.sin(angle) + 0.03,
        texts("clip_geometry.figure.turned", value=texts(HISTOGRAMS["value"]), degrees=f"{math.degrees(angle):.0f}°"),
        fontsize=figures.SIZE_SMALL,
        color=colors["value"],
        va="bottom",
        ha="left" if angle < 0.9 else "center",
    )


def _bars(
    figure: Figure, box: tuple[float, float, float, float], shares: Sequence[float], color: str, reach: float
) -> Axes:
    axes = figures.inch_axes(figure, *box)
    step = 2 * reach / len(shares)
    drawn = [(-reach + (place + 0.5) * step, share) for place, share in enumerate(shares) if share > 0]
    axes.bar([x for x, _ in drawn], [y for _, y in drawn], step, _FLOOR, color=color, linewidth=0)
    axes.set_yscale("log")
    axes.set_ylim(_FLOOR, 1.6)
    axes.set_xlim(-reach, reach)
    axes.yaxis.set_major_locator(FixedLocator([1e-4, 1e-2, 1.0]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticklabels([f"0.01{units.NBSP}%", f"1{units.NBSP}%", f"100{units.NBSP}%"])
    axes.xaxis.set_major_locator(FixedLocator([-reach, 0, reach]))
    axes.set_xticklabels([f"−{reach:g}", "0", f"{reach:g}"])
    axes.grid(True, axis="y")
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0, pad=3)
    return axes


def draw(result: Result, texts: Texts, layout: Layout) -> Figure:
    """The three vectors, then the histograms of their entries."""
    narrow = layout is NARROW
    plane = layout.width - 0.2 if narrow else 3.2
    tall = plane * 0.72
    across = layout.width if narrow else layout.width - plane - 0.3
    panel, head, foot = 0.52, 0.26, 0.42
    stack = len(HISTOGRAMS) * (head + panel) + foot
    height = tall + 0.2 + stack if narrow else max(tall + 0.3, stack + 0.1)
    figure = figures.canvas(layout.width, height)
    below = stack + 0.1 if narrow else (height - tall) / 2
    _arrows(figure, (0.1, below, plane, tall), result, texts)
    left = 0.56
    x = (0.0 if narrow else plane + 0.3) + left
    width = across - left - 0.14
    top = stack if narrow else height - 0.05
    reach, ways = float(result.figure["reach"]), result.figure["ways"]
    for place, (name, key) in enumerate(HISTOGRAMS.items()):
        shares = result.figure["before"] if name == "before" else ways[name]["histogram"]
        y = top - (place + 1) * (head + panel)
        axes = _bars(figure, (x, y, width, panel), shares, _colors()[name], reach)
        axes.tick_params(labelbottom=place == len(HISTOGRAMS) - 1)
        title = texts(key)
        if name != "before":
            changed = units.percent_text(ways[name]["changed"])
            title = texts("clip_geometry.figure.changed", way=title, share=changed)
        figures.inch_text(figure, x, y + panel + 0.08, title, figures.SIZE_SMALL, color=_colors()[name])
    figures.inch_text(
        figure,
        x + width / 2,
        top - stack + 0.13,
        texts("clip_geometry.figure.x"),
        figures.SIZE_SMALL,
        color=figures.MUTED,
        ha="center",
        va="center",
    )
    return figure


def figure(result: Result, texts: Texts) -> FigureSpec:
    """One gradient."""
    ways = result.figure["ways"]
    facts = {
        "parameters": units.count_text(result.figure["num_parameters"]),
        "steps": result.settings["steps"],
        "norm": units.number_text(result.figure["norm"]),
        "max_norm": units.number_text(result.figure["max_norm"]),
        "max_value": units.number_text(result.figure["max_value"]),
        "rms": units.number_text(result.figure["rms"]),
    }
    found = {
        "degrees": f"{math.degrees(_angle(ways['value']['cosine'])):.0f}°",
        "cosine": f"{ways['value']['cosine']:.3f}",
        "share": units.percent_text(ways["value"]["changed"]),
    }
    return FigureSpec(
        slug=slug("figure", NAME),
        label=label(NAME),
        title=texts("pair.clip_geometry.figure"),
        alt=texts("clip_geometry.figure.alt", **facts, **found),
        caption=[texts("clip_geometry.figure.caption", **facts), texts("clip_geometry.figure.found", **found)],
        source=result.source,
        draw=lambda drawn_texts, layout: draw(result, drawn_texts, layout),
        shows=texts(
            "clip_geometry.figure.shows",
            norm=f"{math.degrees(_angle(ways['norm']['cosine'])):.0f}°",
            value=found["degrees"],
        ),
    )


def _settings_text(row: ClipGeometryRow) -> str:
    return str(row["settings"])


def table(result: Result, texts: Texts) -> Table:
    """A row for each method."""
    columns = [
        Column("method", texts("clip_geometry.column.method"), numeric=False),
        Column("settings", texts("clip_geometry.column.settings"), numeric=False, shown=False),
        Column("kept", texts("clip_geometry.column.kept")),
        Column("cosine", texts("clip_geometry.column.cosine")),
        Column("bias", texts("clip_geometry.column.bias")),
        Column("memory", texts("clip_geometry.column.memory"), "B"),
        Column("time", texts("clip_geometry.column.time")),
        Column("when", texts("clip_geometry.column.when"), numeric=False),
    ]
    by_name = {row["method"]: row for row in result.table}
    rows = []
    for method, key in METHODS.items():
        row = by_name[method]
        rows.append(
            [
                Cell(method, texts(key)),
                Cell(_settings_text(row), _settings_text(row)),
                cells.spread_cell(dict(enumerate(row["kept"])), lambda value: f"{value:.2f}"),
                cells.spread_cell(dict(enumerate(row["cosine"])), lambda value: f"{value:.3f}"),
                Cell(row["bias"], f"{row['bias']:.3f}"),
                Cell(row["memory_bytes_per_parameter"], f"{row['memory_bytes_per_parameter']:.0f}"),
                Cell(row["time_ratio_to_torch"], units.factor_text(row["time_ratio_to_torch"])),
                Cell(texts(WHEN[method]), texts(WHEN[method])),
            ]
        )
    facts = {
        "gradients": result.settings["gradients"],
        "parameters": units.count_text(result.figure["num_parameters"]),
        "threads": result.settings["threads"],
    }
    settings = "; ".join(_settings_text(by_name[method]) for method in METHODS)
    return Table(
        slug=slug("table", NAME),
        label=label(NAME),
        title=texts("pair.clip_geometry.table"),
        caption=[texts("clip_geometry.table.caption", **facts), _straight(by_name, texts)],
        columns=columns,
        rows=rows,
        source=result.source,
        notes=[
            texts("clip_geometry.table.note"),
            texts("clip_geometry.table.settings", settings=settings),
            *notes(result, texts),
        ],
    )


def _straight(by_name: Mapping[str, ClipGeometryRow], texts: Texts) -> str:
    """Which methods keep the direction of every gradient."""
    keep = [texts(key) for method, key in METHODS.items() if min(by_name[method]["cosine"]) > _KEEPS_DIRECTION]
    return texts("clip_geometry.table.straight", methods=texts.join(keep))


def content(runs: Runs, texts: Texts) -> Content | None:
    """Both, if the experiment has been run."""
    result = read_result(runs.root, NAME)
    return None if result is None else Content([figure(result, texts), table(result, texts)])


PAIR = measured_pair(NAME, chapter=1, content=content)
