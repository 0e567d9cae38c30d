"""From observations to the fewest mistakes that explain them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tightgrad_lab.audit.causes import Cause, cause_of
from tightgrad_lab.audit.observe import Observation, RankReport
from tightgrad_lab.audit.scenario import Scenario
from tightgrad_lab.audit.specification import PARTIALS
from tightgrad_lab.training.files import finite

NO_SYNC = "ranks differ"
LOST = "the last window is never applied: it is shorter than the others"
CARRIED = "windows go on across the border of two epochs"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Args:
        cause: what, in words.
        where: under which circumstances it shows first.
        gain: what was taken over what was right, there; None if nothing could be compared.
        cosine: of the angle between the two.
        detail: where else it shows, and the cure.
    """

    cause: str
    where: str
    gain: float | None
    cosine: float | None
    detail: str


def diagnose(scenarios: Sequence[Scenario], reports: Sequence[RankReport], partial: str) -> list[Finding]:
    """Name what is wrong, the plainest circumstances first; empty if nothing is."""
    findings = _steps(scenarios, reports, partial)
    remarks = _remarks(scenarios, reports)
    wrong = [seen for report in reports for seen in report.observations if not seen.ok]
    wrong.sort(key=lambda seen: (seen.scenario, seen.window, seen.rank))
    wrong = _comparable(wrong)
    if any(key in ("unheld", "not additive") for key in remarks):
        wrong = [seen for seen in wrong if seen.explanations]  # a norm over more parameters, or no reference at all
    while wrong:
        key = _best(wrong)
        here = [seen for seen in wrong if key is None or key in _causes(seen)]
        findings.append(_finding(key, here, scenarios))
        wrong = [seen for seen in wrong if seen not in here]
    findings = _without_consequences(findings + list(remarks.values()))
    return findings + _disagreeing(scenarios, reports, findings)


def _without_consequences(findings: list[Finding]) -> list[Finding]:
    """What is left over at an epoch's end is lost where it leaks, or where windows go on: that is said once."""
    if any(finding.cause in (CARRIED, cause_of("leaked", math.nan).text) for finding in findings):
        return [finding for finding in findings if finding.cause != LOST]
    return findings


def _causes(seen: Observation) -> dict[str, Cause]:
    """What would explain an observation, by what two findings of the same mistake share."""
    found: dict[str, Cause] = {}
    for name in seen.explanations:
        cause = cause_of(name, seen.gain)
        found.setdefault(cause.key, cause)
    return found


def _comparable(wrong: list[Observation]) -> list[Observation]:
    """Without what follows ranks that differ: their weights are no longer the same, so the reference is not theirs."""
    parted: dict[int, int] = {}
    for seen in wrong:
        if any(key.startswith(NO_SYNC) for key in _causes(seen)):
            parted[seen.scenario] = min(seen.window, parted.get(seen.scenario, seen.window))
    return [seen for seen in wrong if seen.explanations or seen.window <= parted.get(seen.scenario, seen.window)]


def _best(wrong: list[Observation]) -> str | None:
    """The cause of most observations; among equals, the one that observations name first."""
    counts: dict[str, int] = {}
    for seen in wrong:
        for key in _causes(seen):
            counts[key] = counts.get(key, 0) + 1
    return max(counts, key=lambda name: counts[name]) if counts else None


def _finding(key: str | None, here: list[Observation], scenarios: Sequence[Scenario]) -> Finding:
    seen = here[0]
    places = list(dict.fromkeys(scenarios[one.scenario].name for one in here))
    where = f"{scenarios[seen.scenario].name}: window {seen.window + 1}, rank {seen.rank}"
    also = f"seen in {len(places)} of {len(scenarios)} circumstances"
    if key is None:
        cause = f"{seen.gain:.2f}x, cosine {seen.cosine:.4f}: not a mistake that is known"
        return Finding(cause, where, seen.gain, seen.cosine, f"relative error {seen.relative_error:.2g}; {also}.")
    known = _causes(seen)[key]
    detail = f"{also}; relative error {seen.relative_error:.2g}. Cure: {known.cure}"
    return Finding(known.text, where, finite(seen.gain), finite(seen.cosine), detail)


def _remarks(scenarios: Sequence[Scenario], reports: Sequence[RankReport]) -> dict[str, Finding]:
    found: dict[str, Finding] = {}
    for report in reports:
        for remark in report.remarks:
            known = cause_of(remark, math.nan)
            where = f"{scenarios[report.scenario].name}, rank {report.rank}"
            found.setdefault(known.key, Finding(known.text, where, None, None, f"Cure: {known.cure}"))
    return found


def _steps(scenarios: Sequence[Scenario], reports: Sequence[RankReport], partial: str) -> list[Finding]:
    found: dict[str, Finding] = {}
    for report in reports:
        scenario = scenarios[report.scenario]
        flushed, dropped, carried = (len(scenario.windows(one)) for one in PARTIALS)
        expected = {"flush": flushed, "drop": dropped, "carry": carried}[partial]
        allowed = {"flush": (flushed,), "drop": (dropped, flushed), "carry": (carried, carried + 1)}[partial]
        if report.steps in allowed:
            continue
        where = f"{scenario.name}, rank {report.rank}"
        counted = f"{report.steps} optimizer steps for {expected} windows of {scenario.micro_batches} micro-batches."
        cause, cure = _step_cause(scenario, report.steps, expected)
        found.setdefault(cause, Finding(cause, where, None, None, f"{counted} Cure: {cure}"))
    return list(found.values())


def _step_cause(scenario: Scenario, steps: int, expected: int) -> tuple[str, str]:
    if steps == 0:
        return (
            "no optimizer step was seen",
            "train() must step a torch optimizer over the parameters of the model that it was given.",
        )
    if steps == scenario.count * scenario.epochs:
        return "the optimizer steps after every micro-batch", "step once a window, after its last micro-batch."
    if scenario.epochs > 1 and steps == len(scenario.windows("carry")):
        return (
            CARRIED,
            'count micro-batches from the beginning of each epoch; or say PARTIAL = "carry" if this is meant.',
        )
    if scenario.left_over and steps == len(scenario.windows("drop")):
        return (
            LOST,
            'step after the last micro-batch too; or say PARTIAL = "drop" if this is meant.',
        )
    return "the number of optimizer steps is wrong", "step once a window, after its last micro-batch."


def _disagreeing(
    scenarios: Sequence[Scenario], reports: Sequence[RankReport], findings: list[Finding]
) -> list[Finding]:
    if any(NO_SYNC in finding.cause for finding in findings):
        return []
    for index, scenario in enumerate(scenarios):
        here = [report for report in reports if report.scenario == index and not report.alone]
        digests = {report.rank: report.weights for report in here}
        different = [rank for rank, digest in sorted(digests.items()) if digest != digests[min(digests)]]
        if different:
            ranks = ", ".join(map(str, different))
            cause = "ranks differ: they end with different weights"
            detail = (
                f"rank {ranks} differ from rank 0. Cure: apply the same gradient with the same factor on every rank."
            )
            return [Finding(cause, scenario.name, None, None, detail)]
    return []
