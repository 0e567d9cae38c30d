"""What a pair of the handbook is made of."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from markupsafe import Markup
from matplotlib.figure import Figure

from tightgrad_lab import schema
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.texts import Texts

Value = float | int | str | None


@dataclass(frozen=True, slots=True)
class Layout:
    """The size class of a figure: one drawing for a column of text, one for a phone. Lengths are in inches."""

    name: Literal["wide", "narrow"]
    width: float


WIDE = Layout("wide", 7.6)
NARROW = Layout("narrow", 3.45)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a figure or table comes from: glob patterns under runs/, how many files, the command."""

    patterns: tuple[str, ...]
    count: int
    command: str


@dataclass(frozen=True, slots=True)
class FigureSpec:
    """A figure, drawn once per layout; `slug` names its files, `label` its number, `shows` is what it teaches."""

    slug: str
    label: str
    title: str
    alt: str
    caption: list[str | Markup]
    source: Source
    draw: Callable[[Texts, Layout], Figure]
    shows: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column; `unit` is that of the raw values in the CSV file, which also has the columns that are not shown."""

    key: str
    heading: str
    unit: str = ""
    numeric: bool = True
    shown: bool = True

    @property
    def csv_heading(self) -> str:
        return f"{self.heading} [{self.unit}]" if self.unit else self.heading


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: the raw value (sorted by, written to CSV), the text shown, and what stands behind a ±."""

    value: Value
    text: str | Markup
    sd: float | None = None
    margin: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table; rows are lists of cells in the order of the columns.

    `kind` is "words" for cells of sentences, "folded" for the numbers behind such a table, "study" for numbers
    that stand open beside it.
    """

    slug: str
    label: str
    title: str
    caption: list[str | Markup]
    columns: list[Column]
    rows: list[list[Cell]]
    source: Source
    notes: list[str | Markup] = field(default_factory=list)
    kind: Literal["numbers", "words", "folded", "study"] = "numbers"

    def to_csv(self) -> str:
        """The raw values; a column with spreads gets a second one with the standard deviations."""
        spread = {i for i in range(len(self.columns)) if any(row[i].sd is not None for row in self.rows)}
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        heading: list[str] = []
        for i, column in enumerate(self.columns):
            heading += [column.csv_heading, f"{column.csv_heading} sd"] if i in spread else [column.csv_heading]
        writer.writerow(heading)
        for row in self.rows:
            values: list[Value] = []
            for i, cell in enumerate(row):
                values += [cell.value, cell.sd] if i in spread else [cell.value]
            writer.writerow(["" if value is None else value for value in values])
        return out.getvalue()


@dataclass(frozen=True, slots=True)
class Content:
    """What a measured pair shows, in reading order."""

    blocks: list[FigureSpec | Table]


@dataclass(frozen=True, slots=True)
class Pair:
    """A figure and its table. `content` is None while no experiment writes its files; it returns None without them."""

    name: str
    chapter: int
    files: tuple[str, ...]
    command: str
    content: Callable[[Runs, Texts], Content | None] | None = None

    @property
    def number(self) -> int:
        """Return its number on the page."""
        return schema.NUMBERS[self.name]


def measured_pair(name: str, *, chapter: int, content: Callable[[Runs, Texts], Content | None]) -> Pair:
    """Make the pair of an experiment, which writes one file."""
    return Pair(name, chapter, (f"{name}/result.json",), schema.command(name), content)


def number(value: float, text: str) -> Markup:
    """A measured number inside running text, with its raw value."""
    return Markup('<data value="{}">{}</data>').format(repr(value), text)
