"""The table of papers: what each says, what was measured here, and whether the sign is the same."""

import re

from markupsafe import Markup

from tightgrad_lab.report import units
from tightgrad_lab.report.book.chapters import read_tables
from tightgrad_lab.report.book.library import Library
from tightgrad_lab.report.claims.judgement import Finding
from tightgrad_lab.report.model import Cell, Column, Source, Table

SLUG, LABEL = "table18", "18"
_MEASURED = re.compile(r"@(\w+) (.+)")
_SIGNS = {"supported": "papers.yes", "mixed": "papers.partly", "refuted": "papers.no", "open": "papers.open"}


def paper_table(library: Library) -> Table:
    """Return the table of `papers.md`: a cell `@name sentence` is filled in, and its sign, file and command follow."""
    texts = library.texts
    heads, *lines = read_tables(texts.language, "papers")["papers"]
    rows, sources = [], []
    for paper, says, here in lines:
        match = _MEASURED.fullmatch(here)
        finding = library.finding(match[1]) if match else None
        sentence = here if match is None else None
        if match is not None and finding is not None:
            filled = library.filled(f"@measured {match[1]}", finding, match[2])
            sentence = filled + library.renderer.hold(_place(library, finding))
            sources.append(finding.source)
        cells = [paper, says, texts("words.open") if sentence is None else sentence]
        rows.append([*(_text(library, cell) for cell in cells), _sign(library, finding), _source(finding)])
    columns = [*heads, texts("papers.sign"), texts("papers.source")]
    patterns = tuple(dict.fromkeys(pattern for one in sources for pattern in one.patterns))
    commands = dict.fromkeys(one.command for one in sources)
    return Table(
        slug=SLUG,
        label=LABEL,
        title=texts("papers.title"),
        caption=[texts("papers.caption")],
        columns=[Column(str(place), head, numeric=False) for place, head in enumerate(columns)],
        rows=rows,
        source=Source(patterns, len(patterns), " · ".join(commands)),
        kind="words",
    )


def _text(library: Library, text: str) -> Cell:
    html = library.renderer.inline(text)
    return Cell(" ".join(html.striptags().split()), html)


def _place(library: Library, finding: Finding) -> Markup:
    """The table that holds the numbers; for those that only this table has, the machine if it was another one."""
    if library.places.table(finding) is not None:
        return library.origin(finding, "papers")
    machine = library.machine(finding)
    return library.texts.html("papers.elsewhere", **machine) if machine else Markup()


def _sign(library: Library, finding: Finding | None) -> Cell:
    """The verdict on the paper's claim; it is computed from the rows, never written by hand."""
    verdict = finding.verdict if finding else "open"
    return Cell(verdict, library.texts(_SIGNS[verdict]))


def _source(finding: Finding | None) -> Cell:
    if finding is None:
        return Cell(None, units.MISSING)
    files = Markup(" ").join(Markup("<code>{}</code>").format(one) for one in finding.source.patterns)
    command = Markup('<code class="command">{}</code>').format(finding.source.command)
    return Cell(finding.source.command, files + Markup(" ") + command)
