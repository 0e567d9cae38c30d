"""Reads the text of a chapter: its title, its sections, and the directives between the paragraphs.

A chapter is a Markdown file. Its one `#` heading is the title; each `##` heading begins a section of the course, in
the course's order; `###` headings name the parts of a section. Beyond Markdown it has

- `$...$` and `$$...$$`: formulas in LaTeX; their symbols stand in `symbols.md`;
- `[@key]`: a citation; keys stand in `references.json`;
- `{fig:name}`, `{tab:name}`: links to a figure or table by the name of its experiment;
- `[word](#term-name)`: a link to the glossary;
- `@figure name`, `@verdicts`, `@instrument name`, `@papers`: a line of its own, where a figure and its table, the
  verdicts on claims, something to try out, or the table of papers stand;
- `@table name`: a line of its own, where the table in `name.md` stands, and the text that belongs to it;
- `@measured name`: the paragraph that follows is shown if that measurement exists; `{fact}` in it is filled in,
  and of `{fact ? ..1: costs time | 1..: saves time}` the words that its value calls for: a measured direction, order or
  size is never written by hand;
- `@missing name`: the paragraph that follows is shown if it does not exist;
- `::: kind` ... `:::`: a box: goals, example, course, we, literature; `::: predict Question` folds its answer.

Questions to answer before a figure or table stand in `predictions.md`; the module `predictions` says how.
The tables in words stand in `tables.md`: `# name` of the pair, then a Markdown table; a cell `@name sentence` is filled
in. The table of papers stands in `papers.md` in the same form.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markupsafe import Markup

from tightgrad_lab.report.book.markdown import Renderer
from tightgrad_lab.report.errors import ReportError
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.schema import NUMBERS

HERE = Path(__file__).parent
BOXES = ("goals", "example", "course", "we", "literature", "predict", "answer")
_TABLE = re.compile(r"^@table (\w+)$", re.MULTILINE)
_DIRECTIVE = re.compile(r"^@(figure|verdicts|instrument|papers)(?: (\w+))?$", re.MULTILINE)
Sentence = Callable[[str, str], str | None]
"""Fills in the facts of a measurement; None if it does not exist."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a section: HTML, the name of a pair or of an instrument, or the place of the verdicts."""

    kind: str
    body: Markup


@dataclass(frozen=True, slots=True)
class Text:
    """A heading and what stands below it."""

    title: str
    source: str


@dataclass(frozen=True, slots=True)
class Chapter:
    """The source of a chapter: title, what stands before the first section, sections, what stands after the last."""

    title: str
    intro: str
    sections: tuple[Text, ...]
    closing: str


def _file(language: str, name: str) -> str:
    return (HERE / language / f"{name}.md").read_text(encoding="utf-8")


@cache
def read(language: str, name: str) -> Chapter:
    """Return the chapter of a file, such as chapter1. What follows a line `---` closes the chapter."""
    text = _TABLE.sub(lambda found: _file(language, found[1]).strip(), _file(language, name))
    body, _, closing = text.partition("\n---\n")
    head, *rest = re.split(r"^## ", body, flags=re.MULTILINE)
    title, _, intro = head.removeprefix("# ").partition("\n")
    sections = tuple(Text(*(part.strip() for part in one.split("\n", 1))) for one in rest)
    return Chapter(title.strip(), intro.strip(), sections, closing.strip())


@cache
def read_tables(language: str, file: str = "tables") -> dict[str, list[list[str]]]:
    """Return the tables of `tables.md` by the names of their pairs: headings first, then rows."""
    text = _file(language, file)
    found = {}
    for part in re.split(r"^# ", text, flags=re.MULTILINE)[1:]:
        name, *lines = part.splitlines()
        rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines if line.strip()]
        if len({len(row) for row in rows}) != 1:
            raise ReportError(f"book/{language}/{file}.md: the rows of {name} differ in their number of cells.")
        found[name.strip()] = [rows[0], *rows[2:]]
    return found


def numbers_label(name: str, texts: Texts) -> str:
    """Return what the table of a pair's numbers is called; where the course wants words, they stand behind these."""
    number = str(NUMBERS[name])
    own = texts("words.label", label=number) if name in read_tables(texts.language) else number
    return texts("table.label", label=own)


def parts(source: str, renderer: Renderer, sentence: Sentence) -> Iterator[Part]:
    """Yield the pieces of a text in order; every call defines its symbols anew."""
    seen: set[str] = set()
    place = 0
    text = _filled(source, sentence)
    for match in _DIRECTIVE.finditer(text):
        if before := text[place : match.start()].strip():
            yield Part("html", renderer.html(before, seen))
        yield Part(match[1], Markup(match[2] or ""))
        place = match.end()
    if rest := text[place:].strip():
        yield Part("html", renderer.html(rest, seen))


def _filled(source: str, sentence: Sentence) -> str:
    """Return the text with its measured sentences, and without those that nothing has measured."""
    kept = []
    paragraphs = re.split(r"\n{2,}", source)
    for paragraph in paragraphs:
        found = re.match(r"@(measured|missing) (\w+)\n", paragraph)
        if found is None:
            kept.append(paragraph)
            continue
        rest, tail = _closing(paragraph[found.end() :])
        filled = sentence(found[2], rest)
        if found[1] == "missing":
            filled = rest if filled is None else None
        kept.append((filled or "") + tail)
    return "\n\n".join(kept)


def _closing(paragraph: str) -> tuple[str, str]:
    """Return a paragraph and the `:::` that ends its box, if one follows it without an empty line."""
    text = paragraph.rstrip()
    return (text.removesuffix(":::").rstrip(), "\n:::") if text.endswith("\n:::") else (text, "")
