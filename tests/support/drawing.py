"""What a test asks of a pair: a result on disk, its figure and table in every language and layout."""

import contextlib
import html
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Text

from tightgrad_lab.report.drawing import figures
from tightgrad_lab.report.model import NARROW, WIDE, Content, FigureSpec, Layout, Table
from tightgrad_lab.report.texts import load
from tightgrad_lab.schema import command, number

ENVIRONMENT = {"torch": "2.13.0+cpu", "time": "2026-11-24T00:00:00+00:00", "device": "cpu", "backend": "gloo"}


@contextlib.contextmanager
def without_png() -> Iterator[None]:
    """Leave out the images beside a report's drawings: no page shows them, and each takes a quarter of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save_png", lambda figure, path: None)
        yield


@contextlib.contextmanager
def without_figures() -> Iterator[None]:
    """Build reports without their drawings, which take most of the time; tables, captions and texts are as always."""
    module = importlib.import_module("tightgrad_lab.report.build")
    write = module._write

    def write_tables(item: Any, texts: Any, to: Path) -> Any:
        return write(item, texts, to) if isinstance(item, Table) else module.Block("figure", item)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_write", write_tables)
        yield


def write_result(root: Path, name: str, settings: dict[str, Any], figure: dict[str, Any], table: list[Any]) -> Path:
    """Write NAME/result.json below `root`; return `root`."""
    folder = root / name
    folder.mkdir(parents=True)
    result = {
        "schema": 1,
        "pair": number(name),
        "command": command(name),
        "settings": settings,
        "environment": ENVIRONMENT,
        "seconds": 1.0,
        "inputs": "",
        "published": None,
        "figure": figure,
        "table": table,
    }
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return root


def content(pair: Any, root: Path, language: str) -> tuple[FigureSpec, Table]:
    """The pair's one figure and one table."""
    found: Content = pair.content(SimpleNamespace(root=root), load(language))
    figure, table = found.blocks
    assert isinstance(figure, FigureSpec)
    assert isinstance(table, Table)
    return figure, table


def drawn_texts(spec: FigureSpec, language: str, layout: Layout) -> list[str]:
    """Draw; every text must lie inside the figure. Returns the texts."""
    with figures.style():
        figure = spec.draw(load(language), layout)
        svg = figures.to_svg(figure)
        renderer = figure.canvas.get_renderer()
        shown = [text for text in figure.findobj(Text) if _is_drawn(text.get_text(), svg)]
        width, height = figure.get_size_inches() * figure.dpi
        for text in shown:
            box = text.get_window_extent(renderer)
            inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
            assert inside, f"{text.get_text()!r} leaves the {layout.name} figure"
    _inside_their_boxes(figure, shown)
    colors = set(re.findall(r"#[0-9a-f]{6}", svg))
    assert colors <= set(figures.COLORS.values()) | {"#000000"}, colors - set(figures.COLORS.values())
    return [text.get_text() for text in shown]


def _inside_their_boxes(figure: Any, shown: list[Text]) -> None:
    """A text that stands in a box does not cross its edge."""
    renderer = figure.canvas.get_renderer()
    boxes = [one.get_window_extent(renderer) for one in figure.findobj(FancyBboxPatch)]
    for text in shown:
        own = text.get_window_extent(renderer)
        around = [box for box in boxes if box.contains(own.x0 + 1, (own.y0 + own.y1) / 2)]
        if around:
            box = min(around, key=lambda one: one.width * one.height)
            assert own.x1 <= box.x1 + 1, f"{text.get_text()!r} leaves its box"
            assert own.y0 >= box.y0 - 1, f"{text.get_text()!r} leaves its box"


def _is_drawn(text: str, svg: str) -> bool:
    """Matplotlib keeps labels of ticks beyond the axes, which it does not draw."""
    return bool(text.strip()) and html.escape(text.split("\n")[0], quote=False) in svg


LAYOUTS = (WIDE, NARROW)
