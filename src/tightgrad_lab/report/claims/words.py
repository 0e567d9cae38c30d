"""Findings in words: every number inside a sentence keeps its raw value."""

from markupsafe import Markup, escape

from tightgrad_lab.report import units
from tightgrad_lab.report.claims.judgement import Fact, Finding, Number
from tightgrad_lab.report.model import number
from tightgrad_lab.report.texts import Texts


def in_words(finding: Finding, texts: Texts) -> Markup:
    """The sentence of a finding."""
    return texts.html(finding.key, **{name: shown(fact, texts) for name, fact in finding.facts.items()})


def shown(fact: Fact, texts: Texts) -> Markup:
    """A fact as it stands in a sentence."""
    if isinstance(fact, str):
        return escape(fact)
    if not isinstance(fact, Number):
        names = texts.join([_name(key, texts) for key in fact.keys])
        if not fact.qualifiers:
            return escape(names)
        return escape(texts("evidence.with", words=names, more=texts.join([texts(key) for key in fact.qualifiers])))
    text = number(fact.value, formatted(fact.value, fact.unit, texts))
    if fact.noise is None:
        return text
    if fact.noise == 0:  # two or three counts that agree are no proof of certainty
        return texts.html("evidence.same", value=text)
    noise = number(fact.noise, formatted(fact.noise, fact.unit, texts).lstrip("+"))
    return Markup("{} ± {}").format(text, noise)


def _name(key: str, texts: Texts) -> str:
    kind, _, name = key.partition(".")
    return texts.combination(name) if kind == "combination" else texts(key)


def formatted(value: float, unit: str, texts: Texts) -> str:
    """A number in the unit of a fact."""
    match unit:
        case "percent":
            return units.percent_text(value)
        case "points":
            return units.points_text(value)
        case "points_plain":
            return units.points_text(value).lstrip("+")
        case "factor":
            return texts("unit.factor", value=units.factor_text(value)[:-1]).replace(" ", units.NBSP)
        case "times":
            return units.factor_text(value)[:-1]
        case "bytes":
            return units.bytes_text(value)
        case "bits":
            return units.rate_text(value)
        case "seconds":
            return units.seconds_text(value)
        case "count":
            return units.count_text(value)
        case "signed":
            return units.signed(value, 3)
    return units.number_text(value)
