"""The tables in words: what speaks for a method and against it, and where it is used, each with a measured number."""

import re
from dataclasses import replace

from tightgrad_lab.report.book.chapters import read_tables
from tightgrad_lab.report.book.library import Library
from tightgrad_lab.report.claims.judgement import Finding
from tightgrad_lab.report.measured.results import read_result
from tightgrad_lab.report.model import Cell, Column, FigureSpec, Source, Table
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.schema import label, slug

_EVIDENCE = re.compile(r"@(\w+) (.+)")


def table(library: Library, name: str) -> Table | None:
    """Return a pair's table in words; None if the course asks for none."""
    texts = library.texts
    if name not in read_tables(texts.language):
        return None
    heads, *rows = read_tables(texts.language)[name]
    named = [match[1] for row in rows for cell in row if (match := _EVIDENCE.fullmatch(cell))]
    findings = [found for one in dict.fromkeys(named) if (found := library.finding(one))]
    return Table(
        slug=slug("words", name),
        label=label(name),
        title=texts(f"pair.{name}.table"),
        caption=[texts("words.caption")],
        columns=[Column(str(place), head, numeric=False) for place, head in enumerate(heads)],
        rows=[[_cell(cell, library) for cell in row] for row in rows],
        source=_source(findings),
        kind="words",
    )


def _cell(text: str, library: Library) -> Cell:
    """A cell; `@name sentence` is filled with what the measurement of that name found, if it found all of it."""
    match = _EVIDENCE.fullmatch(text)
    sentence: str | None = text
    if match:
        finding = library.finding(match[1])
        asked = set(re.findall(r"\{(\w+)\}", match[2]))
        sentence = library.sentence(*match.groups()) if finding and asked <= finding.facts.keys() else None
    html = library.renderer.inline(library.texts("words.open") if sentence is None else sentence)
    return Cell(" ".join(html.striptags().split()), html)


def _source(findings: list[Finding]) -> Source:
    patterns = dict.fromkeys(pattern for one in findings for pattern in one.source.patterns)
    commands = dict.fromkeys(one.source.command for one in findings)
    return Source(tuple(patterns), len(patterns), " · ".join(commands))


def arranged(library: Library, name: str, items: list[FigureSpec | Table]) -> list[FigureSpec | Table]:
    """What a pair shows, with its sentence under the figure, and with its table in words before the numbers."""
    texts = library.texts
    words = table(library, name) if items else None
    found = [_of_machine(dressed(item, name, texts), library, name) for item in items]
    if words is None:
        return found
    place = next((i for i, item in enumerate(found) if isinstance(item, Table)), len(found))
    folded = [_folded(item, texts) if isinstance(item, Table) and item.kind == "numbers" else item for item in found]
    return [*folded[:place], words, *folded[place:]]


def dressed(item: FigureSpec | Table, name: str, texts: Texts) -> FigureSpec | Table:
    """A figure with the sentence that says what it shows; tables stay as they are."""
    if isinstance(item, Table) or item.shows:
        return item
    return replace(item, shows=texts(f"pair.{name}.figure.shows"))


def _of_machine(item: FigureSpec | Table, library: Library, name: str) -> FigureSpec | Table:
    """A figure says so where another machine measured it; tables say it in their notes."""
    result = read_result(library.runs.root, name)
    if isinstance(item, Table) or result is None or result.published is None:
        return item
    processor = str(result.environment.get("processor", result.environment.get("device", "")))
    about = library.texts("result.elsewhere", processor=processor, date=str(result.environment["time"])[:10])
    return replace(item, shows=f"{item.shows} {about}")


def _folded(item: Table, texts: Texts) -> Table:
    """A table of numbers as it stands behind the table in words, with a label and a title of its own."""
    title = texts("words.numbers", title=item.title)
    return replace(item, label=texts("words.label", label=item.label), title=title, kind="folded")
