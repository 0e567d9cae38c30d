"""Writes the report: pages, figures, tables and assets."""

import shutil
from pathlib import Path

from tightgrad_lab import instruments
from tightgrad_lab.report import pages
from tightgrad_lab.report.book.library import Library
from tightgrad_lab.report.book.paper_table import paper_table
from tightgrad_lab.report.book.tables import arranged, dressed
from tightgrad_lab.report.drawing import figures
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.published import Published, published
from tightgrad_lab.report.model import NARROW, WIDE, FigureSpec, Pair, Table
from tightgrad_lab.report.pages import Block, Full, Shown
from tightgrad_lab.report.pairs import PAIRS, studies
from tightgrad_lab.report.places import shown_tables
from tightgrad_lab.report.texts import LANGUAGES, Texts, load


def build(runs: Path, out: Path) -> list[Path]:
    """Writes the book in English and in Chinese, and beside it every figure (SVG, PNG) and table (CSV).

    The book is a page of contents, a page for each chapter and each part after them, and `book.html`, which has it all
    for printing. A pure function of the files under `runs`. Returns the two pages of contents, English first.

    Raises ReportError if the folder is missing or a file is malformed; then nothing is written.
    """
    folder = Runs(Path(runs))
    out = Path(out)
    contents = {language: _contents(folder, load(language)) for language in LANGUAGES}
    for name in ("figures", "tables", "assets"):
        (out / name).mkdir(parents=True, exist_ok=True)
    for name in (figures.FONT_FILE.name, "STIXMath-subset.otf", "OFL.txt", "OFL-STIX.txt"):
        shutil.copyfile(figures.FONT_FILE.with_name(name), out / "assets" / name)
    for language in LANGUAGES:
        texts = load(language)
        instruments.write_script(out / "assets", language)
        library, found = contents[language]
        shown = [_show(pair, items, full, texts, out) for pair, items, full in found]
        papers = _write(paper_table(library), texts, out)
        for name, html in pages.render(library, shown, papers).items():
            (out / pages.file_name(name, language)).write_text(html, encoding="utf-8")
    return [out / pages.file_name(pages.CONTENTS, language) for language in LANGUAGES]


Items = list[FigureSpec | Table]


def _contents(folder: Runs, texts: Texts) -> tuple[Library, list[tuple[Pair, Items, Published | None]]]:
    """Everything that pairs show; the library knows where each table stands before it writes a sentence."""
    found = []
    for pair in PAIRS:
        content = pair.content(folder, texts) if pair.content else None
        full = published(folder, pair, texts)
        items: Items = list(content.blocks) if content else []
        if content is None and full is None:
            items += studies.tables(pair.name, folder, texts)  # a sentence of a study leads to its table
        found.append((pair, items, full))
    plain = Library(folder, texts)
    labelled = [(pair, arranged(plain, pair.name, items), full.items if full else []) for pair, items, full in found]
    library = Library(folder, texts, shown_tables(labelled))
    return library, [(pair, arranged(library, pair.name, items), full) for pair, items, full in found]


def _show(pair: Pair, items: Items, full: Published | None, texts: Texts, out: Path) -> Shown:
    more = Full(full, [_write(dressed(item, pair.name, texts), texts, out) for item in full.items]) if full else None
    return Shown(pair, [_write(item, texts, out) for item in items], more)


def _write(item: FigureSpec | Table, texts: Texts, out: Path) -> Block:
    name = f"{item.slug}.{texts.language}"
    if isinstance(item, Table):
        (out / "tables" / f"{name}.csv").write_text(item.to_csv(), encoding="utf-8-sig", newline="")
        return Block("table", item)
    inline = {}
    with figures.style():
        for layout in (WIDE, NARROW):
            figure = item.draw(texts, layout)
            svg = figures.to_svg(figure)
            inline[layout.name] = figures.inline_svg(svg, f"{item.slug}-{layout.name}", item.alt)
            if layout is WIDE:
                (out / "figures" / f"{name}.svg").write_text(svg, encoding="utf-8")
                figures.save_png(figure, out / "figures" / f"{name}.png")
    return Block("figure", item, inline["wide"], inline["narrow"])
