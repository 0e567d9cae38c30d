"""Writes the report: pages, figures, tables and assets."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tightgrad_lab.report import environment, faq, figures, papers, summary
from tightgrad_lab.report.book.library import Library
from tightgrad_lab.report.claims import judged
from tightgrad_lab.report.files import Runs
from tightgrad_lab.report.model import NARROW, WIDE, FigureSpec, Pair, Table
from tightgrad_lab.report.pairs import PAIRS
from tightgrad_lab.report.published import Published, published
from tightgrad_lab.report.texts import LANGUAGES, Texts, breakable, load, prose
from tightgrad_lab.schema import NUMBERS

PAGES = {"en": "index.html", "zh": "index.zh.html"}
_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Block:
    """A figure or table as the template shows it."""

    kind: str
    item: FigureSpec | Table
    wide: str = ""
    narrow: str = ""


@dataclass(frozen=True, slots=True)
class Full:
    """The published result of the full settings, as the template shows it."""

    about: Published
    blocks: list[Block]


@dataclass(frozen=True, slots=True)
class Shown:
    """A pair on the page; without blocks and without a published result it is a placeholder."""

    pair: Pair
    blocks: list[Block]
    full: Full | None

    @property
    def planned(self) -> bool:
        return self.pair.content is None


def build(runs: Path, out: Path) -> list[Path]:
    """Writes the English and the Chinese page, and beside them every figure (SVG, PNG) and table (CSV).

    A pure function of the files under `runs`. Raises ReportError if the folder is missing or a file is malformed;
    then nothing is written.
    """
    folder = Runs(Path(runs))
    out = Path(out)
    contents = {language: _contents(folder, load(language)) for language in LANGUAGES}
    for name in ("figures", "tables", "assets"):
        (out / name).mkdir(parents=True, exist_ok=True)
    for name in (figures.FONT_FILE.name, "STIXMath-subset.otf", "OFL.txt", "OFL-STIX.txt"):
        shutil.copyfile(figures.FONT_FILE.with_name(name), out / "assets" / name)
    pages = []
    for language in LANGUAGES:
        texts = load(language)
        shown = [_show(pair, items, full, texts, out) for pair, items, full in contents[language]]
        page = out / PAGES[language]
        page.write_text(_render(folder, texts, shown), encoding="utf-8")
        pages.append(page)
    return pages


Items = list[FigureSpec | Table]


def _contents(folder: Runs, texts: Texts) -> list[tuple[Pair, Items, Published | None]]:
    found = []
    for pair in PAIRS:
        content = pair.content(folder, texts) if pair.content else None
        found.append((pair, content.blocks if content else [], published(folder, pair, texts)))
    return found


def _show(pair: Pair, items: Items, full: Published | None, texts: Texts, out: Path) -> Shown:
    more = Full(full, [_write(item, texts, out) for item in full.items]) if full else None
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


def _status(folder: Runs, texts: Texts, shown: list[Shown]) -> list[tuple[str, str]]:
    """The facts of the strip at the top: (value, label)."""
    measured = sum(bool(one.blocks or one.full) for one in shown)
    facts = [(f"{measured} / {len(shown)}", texts("status.measured"))]
    cases = [case for name in environment.CASES if (case := folder.case(name))]
    runs = [run for case in cases for run in case.runs]
    facts.append((str(len(runs)), texts("status.runs")))
    if runs:
        facts.append((str(max(case.seeds for case in cases)), texts("status.seeds")))
    date = max((str(run.environment["time"])[:10] for run in runs), default=texts("status.none"))
    facts.append((date, texts("status.date")))
    return facts


def _render(folder: Runs, texts: Texts, shown: list[Shown]) -> str:
    other = next(language for language in LANGUAGES if language != texts.language)
    templates = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["prose"] = prose
    templates.filters["breakable"] = breakable
    claims = judged(folder, texts)
    cards = papers.read_cards(folder.root)
    library = Library(folder, texts)
    return templates.get_template("page.html.j2").render(
        t=texts,
        zip=zip,
        style=Markup((_HERE / "templates" / "style.css").read_text(encoding="utf-8")),
        script=Markup((_HERE / "templates" / "script.js").read_text(encoding="utf-8")),
        font_file=figures.FONT_FILE.name,
        other=load(other),
        other_page=PAGES[other],
        runs_name=folder.root.name,
        status=_status(folder, texts, shown),
        chapters=library.chapters(),
        summary=library.page("summary"),
        questions=library.questions(),
        terms=library.terms(),
        symbols=library.symbols(),
        shown={one.pair.name: one for one in shown},
        numbers=NUMBERS,
        headline=summary.headline(folder, texts),
        counted=summary.counted(claims, texts),
        claims=claims,
        answers=faq.answers(folder, texts),
        course_papers=[(paper, papers.users_of_course(cards, paper)) for paper in papers.course_papers()],
        method_papers=papers.method_papers(cards),
        reading=papers.reading(),
        cards=cards,
        environments=environment.environments(folder, texts),
        unfinished=folder.unfinished,
    )
