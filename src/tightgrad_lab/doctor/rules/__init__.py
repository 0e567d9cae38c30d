"""The rules, one file each: a pure function from a history to a finding, or None."""

from collections.abc import Callable

from tightgrad_lab.doctor.finding import Finding
from tightgrad_lab.doctor.history import History
from tightgrad_lab.doctor.rules import (
    all_masked,
    exploding_norms,
    graph_kept_alive,
    idle_clipping,
    out_of_memory,
    over_clipping,
    precision_lost,
    rank_drift,
    stale_warm_start,
    steady_clipping,
    wrong_denominator,
)

Rule = Callable[[History], Finding | None]

RULES: dict[str, Rule] = {
    over_clipping.PROBLEM: over_clipping.check,
    idle_clipping.PROBLEM: idle_clipping.check,
    exploding_norms.PROBLEM: exploding_norms.check,
    graph_kept_alive.PROBLEM: graph_kept_alive.check,
    out_of_memory.PROBLEM: out_of_memory.check,
    precision_lost.PROBLEM: precision_lost.check,
    stale_warm_start.PROBLEM: stale_warm_start.check,
    rank_drift.PROBLEM: rank_drift.check,
    all_masked.PROBLEM: all_masked.check,
    wrong_denominator.PROBLEM: wrong_denominator.check,
}

NOTES: dict[str, Rule] = {steady_clipping.PROBLEM: steady_clipping.check}
"""What is not wrong, but worth knowing."""

EXPLAINS = {
    stale_warm_start.PROBLEM: (precision_lost.PROBLEM,),
    wrong_denominator.PROBLEM: (over_clipping.PROBLEM, exploding_norms.PROBLEM, steady_clipping.PROBLEM),
}
"""What is a mere consequence of a problem, with a cure that would only hide it."""


def examine(history: History) -> list[Finding]:
    """Everything that is wrong, in the order of the rules; empty if nothing is."""
    return _examined(history, RULES)


def notes(history: History) -> list[Finding]:
    """Everything that is worth knowing and not wrong, unless it follows from what is."""
    return [finding for finding in _examined(history, RULES | NOTES) if finding.problem in NOTES]


def _examined(history: History, rules: dict[str, Rule]) -> list[Finding]:
    found = {name: finding for name, rule in rules.items() if (finding := rule(history)) is not None}
    explained = {consequence for name in found for consequence in EXPLAINS.get(name, ())}
    return [finding for name, finding in found.items() if name not in explained]
