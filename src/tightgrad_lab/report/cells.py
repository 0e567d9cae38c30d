"""Cells, comparisons and sources shared by everything that shows a case."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import fmean

from markupsafe import Markup

from tightgrad_lab.report import units
from tightgrad_lab.report.measured.files import Case, Run
from tightgrad_lab.report.measured.stats import Comparison, compare, spread
from tightgrad_lab.report.model import Cell, Source
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.schema import TECHNIQUES

Format = Callable[[float], str]


def metric_name(case: Case) -> str:
    return str(case.runs[0].summary["metric"])


def is_share(case: Case) -> bool:
    """Whether the metric counts right answers, so that it reads as a percentage."""
    return metric_name(case) == "accuracy"


def metric_format(case: Case) -> Format:
    return units.percent_text if is_share(case) else units.number_text


def difference_format(case: Case) -> Format:
    return units.points_text if is_share(case) else lambda value: units.signed(value, 3)


def samples(case: Case) -> int | None:
    """The size of the test set, if the metric is a share of it."""
    found = case.runs[0].summary.get("test_samples")
    return int(found) if found and is_share(case) else None


def comparison(case: Case, combination: str) -> Comparison | None:
    """The combination against "none", judged in the metric's own sense; None for "none" or without a run of it."""
    if combination == "none" or not {"none", combination} <= case.combinations.keys():
        return None
    sign = 1 if case.higher_is_better else -1
    own, base = ({k: sign * v for k, v in case.values(name, "value").items()} for name in (combination, "none"))
    found = compare(own, base, samples=samples(case))
    return replace(found, difference=sign * found.difference)


def mean(case: Case, combination: str, key: str) -> float:
    return fmean(case.values(combination, key).values())


def ratio(case: Case, combination: str, key: str, base: str = "none") -> float | None:
    """Own mean over the base's mean; None where it cannot be formed."""
    if not {base, combination} <= case.combinations.keys():
        return None
    divisor = mean(case, base, key)
    return mean(case, combination, key) / divisor if divisor else None


def combination_cell(combination: str, texts: Texts) -> Cell:
    """The name behind its dot."""
    present = combination.split("+")
    marks = Markup("").join(
        Markup('<i class="{}{}"></i>').format(name, "" if name in present else " off") for name in TECHNIQUES
    )
    text = Markup('<span class="combo"><span class="marks" aria-hidden="true">{}</span><span>{}</span></span>')
    return Cell(combination, text.format(marks, texts.combination(combination).replace(" + ", f"{units.NBSP}+ ")))


def spread_cell(values: Mapping[int, float], form: Format) -> Cell:
    """Mean and, over several seeds, the sample standard deviation; a spread of zero is not shown."""
    found = spread(list(values.values()))
    return Cell(found.mean, form(found.mean), found.sd, form(found.sd) if found.sd else "")


def optional_cell(value: float | None, form: Format) -> Cell:
    return Cell(None, units.MISSING) if value is None else Cell(value, form(value))


def difference_cell(case: Case, found: Comparison | None) -> Cell:
    """The difference to "none" with its noise behind it."""
    if found is None:
        return Cell(None, units.MISSING)
    form = difference_format(case)
    noise = "" if found.noise is None else form(found.noise).lstrip("+")
    return Cell(found.difference, form(found.difference), margin=noise)


def factor_cell(case: Case, combination: str) -> Cell:
    runs = case.combinations[combination].values()
    found = [run.summary.get("compression_factor") for run in runs]
    if any(value is None for value in found):
        return Cell(None, units.MISSING)
    return spread_cell({i: float(value) for i, value in enumerate(found) if value is not None}, units.factor_text)


def clipped_share(run: Run) -> float | None:
    """The share of steps whose gradient was really scaled; None if the run does not clip."""
    coefficients = [step["clip_coef"] for step in run.steps if step.get("clip_coef") is not None]
    return fmean(value < 1 for value in coefficients) if coefficients and "clip" in run.combination.split("+") else None


def finite_norms(run: Run) -> list[float]:
    norms = [step.get("grad_norm") for step in run.steps]
    return [float(norm) for norm in norms if norm is not None and math.isfinite(norm)]


def verdict_cell(found: Comparison | None, combination: str, texts: Texts) -> Cell:
    key = "base" if combination == "none" else "unknown" if found is None else found.verdict
    return Cell(key, Markup('<span class="verdict {}">{}</span>').format(key, texts(f"compare.{key}")))


def seeds_note(case: Case, texts: Texts) -> Markup:
    return texts.html("seeds.one", case=case.name) if case.seeds == 1 else texts.html("seeds.many", count=case.seeds)


def source(case: Case, *patterns: str) -> Source:
    """The files of a case that match, counted."""
    root = case.root
    count = sum(len(list(root.glob(pattern))) for pattern in patterns)
    return Source(tuple(f"{root.name}/{pattern}" for pattern in patterns), count, case.command)
