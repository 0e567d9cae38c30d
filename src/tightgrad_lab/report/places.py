"""Where a number of a sentence stands: the table that is drawn from the same files."""

from collections.abc import Iterable, Mapping

from markupsafe import Markup

from tightgrad_lab.report import units
from tightgrad_lab.report.book.chapters import numbers_label
from tightgrad_lab.report.claims.judgement import Finding
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.results import PUBLISHED, Result, read_result
from tightgrad_lab.report.model import FigureSpec, Pair, Table
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.schema import NUMBERS

Items = Iterable[FigureSpec | Table]


class Places:
    """The tables of each pair, as the page shows them.

    Args:
        shown: the name of each pair with its figures and tables, this machine's own before the published ones.
    """

    def __init__(self, shown: Mapping[str, Items] | None = None) -> None:
        self._tables = {
            name: [item for item in items if isinstance(item, Table)] for name, items in (shown or {}).items()
        }

    def table(self, finding: Finding) -> Table | None:
        """Return the first table of numbers that is drawn from a finding's files; None if there is none."""
        files = set(finding.source.patterns)
        tables = [one for one in self._tables.get(finding.pair, ()) if files & set(one.source.patterns)]
        return min(tables, key=lambda one: one.kind == "words", default=None)

    def link(self, finding: Finding, texts: Texts, place: str = "table") -> Markup:
        """Return a link to the table that holds a finding's numbers, or to its pair, or to the pair's figure."""
        table = self.table(finding)
        if place == "figure":
            anchor, label = f"pair{NUMBERS[finding.pair]}", texts("figure.label", label=NUMBERS[finding.pair])
        elif table is not None:
            anchor, label = table.slug, texts("table.label", label=table.label)
        else:
            anchor, label = f"pair{NUMBERS[finding.pair]}", numbers_label(finding.pair, texts)
        return Markup('<a href="#{}">{}</a>').format(anchor, label.replace(" ", units.NBSP))


def shown_tables(contents: Iterable[tuple[Pair, Items, Items]]) -> Places:
    """Return the places of a page from each pair, its own items and its published ones."""
    return Places({pair.name: [*own, *published] for pair, own, published in contents})


def elsewhere(finding: Finding, runs: Runs) -> Result | None:
    """Return the result that a finding comes from if another machine measured it; None if this one did."""
    for pattern in finding.source.patterns:
        parts = pattern.split("/")
        if parts[-1] != "result.json":
            continue
        root = runs.root / PUBLISHED if PUBLISHED in parts else runs.root
        result = read_result(root, parts[-2])
        if result is not None and (result.published is not None or root.name == PUBLISHED):
            return result
    return None
