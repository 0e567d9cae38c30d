"""What a claim's verdict is made of: findings, each a sentence with the numbers of the row that says so."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from tightgrad_lab.report.model import Source

Verdict = Literal["supported", "mixed", "refuted", "open"]
Unit = Literal[
    "percent",
    "points",
    "points_plain",
    "factor",
    "times",
    "bytes",
    "bits",
    "seconds",
    "count",
    "number",
    "signed",
]


@dataclass(frozen=True, slots=True)
class Number:
    """A measured number.

    Args:
        value: in SI base units; shares and differences of shares as fractions.
        unit: how it is shown.
        noise: half width of its 95 % interval, if there is one.
    """

    value: float
    unit: Unit
    noise: float | None = None


@dataclass(frozen=True, slots=True)
class Words:
    """Names in a sentence: keys of texts; those of `qualifiers` stand behind them, as what they run with."""

    keys: tuple[str, ...]
    qualifiers: tuple[str, ...] = ()


Fact = Number | Words | str


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence of evidence.

    Args:
        key: of its text.
        verdict: what this sentence alone says of the claim.
        facts: what stands in the text's braces.
        pair: the name of the experiment whose table has the row.
        source: the files and the command.
    """

    key: str
    verdict: Verdict
    facts: Mapping[str, Fact]
    pair: str
    source: Source

    @property
    def name(self) -> str:
        """Return what tells it from its neighbours on a page: its key and the names in it, without its numbers."""
        names = [
            fact if isinstance(fact, str) else "+".join((*fact.keys, *fact.qualifiers))
            for fact in self.facts.values()
            if not isinstance(fact, Number)
        ]
        return " ".join([self.key, *names])


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict and why; `needs` are the pairs that would answer what is open."""

    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    needs: tuple[str, ...] = ()


def judgement(findings: Iterable[Finding | None], *needs: str) -> Judgement:
    """All say yes: supported; all say no: refuted; else mixed. Findings that are open, or None, do not count."""
    found = tuple(finding for finding in findings if finding is not None)
    said = {finding.verdict for finding in found} - {"open"}
    verdict: Verdict = "open" if not said else said.pop() if len(said) == 1 else "mixed"
    return Judgement(verdict, found, needs)


def of_share(good: int, total: int) -> Verdict:
    """All, some or none of several."""
    return "open" if total == 0 else "supported" if good == total else "refuted" if good == 0 else "mixed"
