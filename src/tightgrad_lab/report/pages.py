"""The pages of the book: contents, chapters, what comes after them, and the whole in one for printing."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from tightgrad_lab import instruments
from tightgrad_lab.report import environment, faq, papers, summary
from tightgrad_lab.report.book.library import Library
from tightgrad_lab.report.book.prediction_facts import PREDICTED
from tightgrad_lab.report.claims import judged
from tightgrad_lab.report.drawing import figures
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.published import Published
from tightgrad_lab.report.model import FigureSpec, Pair, Table
from tightgrad_lab.report.texts import LANGUAGES, Texts, breakable, load, prose
from tightgrad_lab.schema import NUMBERS

CONTENTS, WHOLE = "index", "book"
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


def file_name(page: str, language: str) -> str:
    """Return the file of a page: index.html, or index.zh.html."""
    return f"{page}.html" if language == LANGUAGES[0] else f"{page}.{language}.html"


@cache
def _template() -> Template:
    """The template of all pages; to compile it takes as long as to fill it."""
    templates = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["prose"] = prose
    templates.filters["breakable"] = breakable
    return templates.get_template("page.html.j2")


def render(library: Library, shown: list[Shown], papers: Block) -> dict[str, str]:
    """Return the HTML of every page by its name, in reading order; the whole book comes last.

    Args:
        library: the texts, and where tables stand.
        shown: every pair.
        papers: the table of what papers say and what was measured here.
    """
    texts = library.texts
    other = load(next(language for language in LANGUAGES if language != texts.language))
    template = _template()
    content = _content(library, shown) | {"paper_table": papers}
    titles = _titles(content, texts)
    order = [CONTENTS, *titles]

    def neighbour(place: int) -> tuple[str, str] | None:
        """The file and the title of a page by its place, or None beyond the ends."""
        if not 0 <= place < len(order):
            return None
        return file_name(order[place], texts.language), titles.get(order[place], texts("site.contents"))

    found = {}
    for place, name in enumerate([*order, WHOLE]):
        found[name] = template.render(
            **content,
            here=name,
            whole=name == WHOLE,
            title=titles.get(name, texts("site.title")),
            previous=neighbour(place - 1),
            following=neighbour(place + 1),
            contents_page=file_name(CONTENTS, texts.language),
            whole_page=file_name(WHOLE, texts.language),
            slides_page=f"slides.{texts.language}.html",
            other=other,
            other_page=file_name(name, other.language),
        )
    return _linked(found, texts.language)


def _titles(content: dict[str, Any], texts: Texts) -> dict[str, str]:
    """The pages between the contents and the whole, each with its title, in reading order."""
    return {
        **{f"chapter{chapter.number}": chapter.title for chapter in content["chapters"]},
        "summary": content["summary"][0],
        "references": texts("references.title"),
        "faq": content["questions"][0],
        "glossary": texts("glossary.title"),
        "environment": texts("environment.title"),
    }


def _linked(pages: dict[str, str], language: str) -> dict[str, str]:
    """Let links to what stands on another page lead there."""
    ids = {name: set(re.findall(r' id="([^"]+)"', html)) for name, html in pages.items()}
    owner = {anchor: name for name in reversed(pages) if name != WHOLE for anchor in ids[name]}

    def linked(name: str, html: str) -> str:
        def link(match: re.Match[str]) -> str:
            anchor = match[1]
            if anchor in ids[name] or anchor not in owner:
                return match[0]
            return f'href="{file_name(owner[anchor], language)}#{anchor}"'

        return re.sub(r'href="#([^"]+)"', link, html)

    return {name: linked(name, html) for name, html in pages.items()}


def _content(library: Library, shown: list[Shown]) -> dict[str, Any]:
    """What any page can show."""
    folder, texts = library.runs, library.texts
    claims = judged(folder, texts)
    cards = papers.read_cards(folder.root)
    return {
        "t": texts,
        "zip": zip,
        "style": Markup((_HERE / "templates" / "style.css").read_text(encoding="utf-8") + instruments.style()),
        "instrument": instruments.instrument,
        "script": Markup((_HERE / "templates" / "script.js").read_text(encoding="utf-8")),
        "font_file": figures.FONT_FILE.name,
        "runs_name": folder.root.name,
        "status": _status(folder, texts, shown),
        "chapters": library.chapters(),
        "summary": library.page("summary"),
        "questions": library.questions(),
        "terms": library.terms(),
        "symbols": library.symbols(),
        "shown": {one.pair.name: one for one in shown},
        "asked": {where: found for where in PREDICTED if (found := library.asked(*where))},
        "numbers": NUMBERS,
        "origin": library.origin,
        "headline": summary.headline(folder, texts),
        "counted": summary.counted(claims, texts),
        "claims": claims,
        "answers": faq.answers(folder, texts),
        "course_papers": [(paper, papers.users_of_course(cards, paper)) for paper in papers.course_papers()],
        "method_papers": papers.method_papers(cards),
        "reading": papers.reading(),
        "cards": cards,
        "environments": environment.environments(folder, texts),
        "unfinished": folder.unfinished,
    }
