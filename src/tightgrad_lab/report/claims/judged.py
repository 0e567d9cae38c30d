"""All claims of the course, judged and put into words."""

from dataclasses import dataclass

from markupsafe import Markup

from tightgrad_lab.report.claims import accumulation, clipping, combination, compression, cures
from tightgrad_lab.report.claims.judgement import Finding, Judgement
from tightgrad_lab.report.claims.words import in_words
from tightgrad_lab.report.course import COURSE
from tightgrad_lab.report.links import commands, pairs_in_words
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.texts import Texts

JUDGES = {
    **clipping.JUDGES,
    **accumulation.JUDGES,
    **compression.JUDGES,
    **combination.JUDGES,
    **cures.JUDGES,
}


@dataclass(frozen=True, slots=True)
class Evidence:
    """One sentence on the page, and where its numbers come from."""

    text: Markup
    finding: Finding


@dataclass(frozen=True, slots=True)
class Judged:
    """A claim on the page: its words, where the course makes it, its verdict and why."""

    name: str
    chapter: int
    anchor: str
    text: str
    judgement: Judgement
    evidence: tuple[Evidence, ...]
    open: Markup

    @property
    def verdict(self) -> str:
        return self.judgement.verdict


def judged(runs: Runs, texts: Texts) -> dict[str, Judged]:
    """Every claim by its name, in the order of the course."""
    found = {}
    for chapter in COURSE:
        for section in chapter:
            for name in section.claims:
                judgement = JUDGES[name](runs)
                evidence = tuple(Evidence(in_words(one, texts), one) for one in judgement.findings)
                missing = [n for n in judgement.needs if n not in {one.finding.pair for one in evidence}]
                still = _open(missing, texts) if judgement.verdict == "open" else Markup("")
                text = texts(f"claim.{name}")
                found[name] = Judged(name, section.chapter, section.anchor, text, judgement, evidence, still)
    return found


def _open(pairs: list[str], texts: Texts) -> Markup:
    if not pairs:
        return texts.html("evidence.noise")
    return texts.html("evidence.open", pairs=pairs_in_words(texts, *pairs), command=commands(*pairs))
