"""From observations to the fewest mistakes that explain them."""

from collections.abc import Sequence
from dataclasses import dataclass

from tightgrad_lab.audit.causes import cause_of
from tightgrad_lab.audit.observe import Observation, RankReport
from tightgrad_lab.audit.scenario import Scenario
from tightgrad_lab.training.files import finite

NO_SYNC = "ranks differ"


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
    wrong = [seen for report in reports for seen in report.observations if not seen.ok]
    wrong.sort(key=lambda seen: (seen.scenario, seen.window, seen.rank))
    wrong = _comparable(wrong)
    while wrong:
        explanation = _best(wrong)
        here = [seen for seen in wrong if explanation is None or explanation in seen.explanations]
        findings.append(_finding(explanation, here, scenarios))
        wrong = [seen for seen in wrong if seen not in here]
    findings = _merged(findings)
    return findings + _disagreeing(scenarios, reports, findings)


def _comparable(wrong: list[Observation]) -> list[Observation]:
    """Without what follows ranks that differ: their weights are no longer the same, so the reference is not theirs."""
    parted: dict[int, int] = {}
    for seen in wrong:
        if any(cause_of(name, seen.gain).text.startswith(NO_SYNC) for name in seen.explanations):
            parted[seen.scenario] = min(seen.window, parted.get(seen.scenario, seen.window))
    return [seen for seen in wrong if seen.explanations or seen.window <= parted.get(seen.scenario, seen.window)]


def _best(wrong: list[Observation]) -> str | None:
    """The explanation of most observations; among equals, the one that observations name first."""
    counts: dict[str, int] = {}
    for seen in wrong:
        for explanation in seen.explanations:
            counts[explanation] = counts.get(explanation, 0) + 1
    return max(counts, key=lambda name: counts[name]) if counts else None


def _finding(explanation: str | None, here: list[Observation], scenarios: Sequence[Scenario]) -> Finding:
    seen = here[0]
    places = list(dict.fromkeys(scenarios[one.scenario].name for one in here))
    where = f"{scenarios[seen.scenario].name}: window {seen.window + 1}, rank {seen.rank}"
    also = f"seen in {len(places)} of {len(scenarios)} circumstances"
    if explanation is None:
        cause = f"{seen.gain:.2f}x, cosine {seen.cosine:.4f}: not a mistake that is known"
        return Finding(cause, where, seen.gain, seen.cosine, f"relative error {seen.relative_error:.2g}; {also}.")
    cause_found = cause_of(explanation, seen.gain)
    detail = f"{also}; relative error {seen.relative_error:.2g}. Cure: {cause_found.cure}"
    return Finding(cause_found.text, where, finite(seen.gain), finite(seen.cosine), detail)


def _merged(findings: list[Finding]) -> list[Finding]:
    """Each cause once: the same one can have several explanations, or a gain that differs by circumstances."""
    found: dict[str, Finding] = {}
    for finding in findings:
        key = finding.cause.partition("x ")[2] if finding.gain is not None else finding.cause
        found.setdefault(key or finding.cause, finding)
    return list(found.values())


def _steps(scenarios: Sequence[Scenario], reports: Sequence[RankReport], partial: str) -> list[Finding]:
    found: dict[str, Finding] = {}
    for report in reports:
        scenario = scenarios[report.scenario]
        expected = len(scenario.windows())
        dropped = partial == "drop" and scenario.left_over > 0
        if report.steps == expected or (dropped and report.steps == expected - 1):
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
    if steps == scenario.count:
        return "the optimizer steps after every micro-batch", "step once a window, after its last micro-batch."
    if scenario.left_over and steps == expected - 1:
        return (
            "the last window is never applied: it is shorter than the others",
            'step after the last micro-batch too; or say PARTIAL = "drop" if this is meant.',
        )
    return "the number of optimizer steps is wrong", "step once a window, after its last micro-batch."


def _disagreeing(
    scenarios: Sequence[Scenario], reports: Sequence[RankReport], findings: list[Finding]
) -> list[Finding]:
    if any(NO_SYNC in finding.cause for finding in findings):
        return []
    for index, scenario in enumerate(scenarios):
        digests = {report.rank: report.weights for report in reports if report.scenario == index}
        different = [rank for rank, digest in sorted(digests.items()) if digest != digests[min(digests)]]
        if different:
            ranks = ", ".join(map(str, different))
            cause = "ranks differ: they end with different weights"
            detail = (
                f"rank {ranks} differ from rank 0. Cure: apply the same gradient with the same factor on every rank."
            )
            return [Finding(cause, scenario.name, None, None, detail)]
    return []
