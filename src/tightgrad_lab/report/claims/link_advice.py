"""Which compression method to use over which link.

`link_speeds` says what is fast, `accuracy_vs_bytes` what keeps the accuracy.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tightgrad_lab.report.claims.judgement import Fact, Finding, Number, Words
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.results import PUBLISHED, Result, read_best, read_result
from tightgrad_lab.report.measured.stats import Comparison, compare
from tightgrad_lab.report.model import Source
from tightgrad_lab.schema import PAYS

LINKS, ACCURACY = "link_speeds", "accuracy_vs_bytes"
DENSE = "dense"
METHODS: dict[str, tuple[str, str | None, str]] = {
    "cast bfloat16": ("link_speeds.figure.bfloat16", "float16", "none"),
    "8-bit blocks": ("link_speeds.figure.int8", "int8", "error_feedback"),
    "4-bit blocks": ("link_speeds.figure.int4", "int4", "error_feedback"),
    "sign": ("link_speeds.figure.sign", "sign", "error_feedback"),
    "powersgd rank 4": ("link_speeds.figure.powersgd", "powersgd_4", "error_feedback"),
    "powersgd rank 8, 8-bit": ("link_speeds.figure.powersgd_8", None, "error_feedback"),
    "topk 1 %": ("link_speeds.figure.topk_1", "topk_1", "error_feedback"),
    "topk 0.1 %": ("link_speeds.figure.topk_01", "topk_01", "error_feedback"),
}
"""For each method of `link_speeds`: the key of its name, then the nearest method and feedback of `accuracy_vs_bytes`.

None where that has no such method.
"""
Row = Mapping[str, Any]


def by_link(runs: Runs) -> list[Finding]:
    """Return the advice for every link: the fastest method among those that keep the accuracy, or none."""
    result = read_best(runs.root, LINKS)
    if result is None:
        return []
    accuracy = _accuracy(runs)
    found: list[Finding] = []
    for steps in _links(result):
        found += _advice(result, steps, accuracy)
    return found


def _links(result: Result) -> list[dict[str, Row]]:
    """The steps of each method, for each number of ranks and speed."""
    groups: dict[tuple[int, float], dict[str, Row]] = {}
    for point in result.figure.get("points", ()):
        groups.setdefault((point["ranks"], point["bits_per_second"]), {})[point["plan"]] = point
    return [groups[key] for key in sorted(groups)]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What a method did to the accuracy: its difference to dense, None if a run diverged; and where this stands."""

    against_dense: Comparison | None
    source: Source

    @property
    def loses(self) -> bool:
        """Whether the accuracy fell by more than the noise, or a run diverged."""
        return self.against_dense is None or self.against_dense.verdict == "short"

    @property
    def keeps(self) -> bool:
        """Whether the noise is known and the accuracy did not fall by more."""
        return self.against_dense is not None and self.against_dense.verdict in ("within", "ahead")


def _accuracy(runs: Runs) -> dict[str, Accuracy]:
    """Return each method's accuracy. Where the page shows two results of a method, one that loses counts."""
    results = [read_result(root, ACCURACY) for root in (runs.root, runs.root / PUBLISHED)]
    found: dict[str, Accuracy] = {}
    for plan, (_, method, feedback) in METHODS.items():
        shown = [one for result in results if result for one in _compared(result, method, feedback)]
        if shown:
            found[plan] = next((one for one in shown if one.loses), shown[0])
    return found


def _compared(result: Result, method: str | None, feedback: str) -> Iterable[Accuracy]:
    dense = next((row for row in result.table if row["method"] == DENSE and row["accuracy"]), None)
    row = next((row for row in result.table if (row["method"], row["feedback"]) == (method, feedback)), None)
    if dense is None or row is None:
        return
    if row["diverged"] or not row["accuracy"]:
        yield Accuracy(None, result.source)
        return
    own, base = (dict(enumerate(map(float, one["accuracy"]))) for one in (row, dense))
    yield Accuracy(compare(own, base, samples=int(result.figure["test_samples"])), result.source)


def _advice(result: Result, steps: Mapping[str, Row], accuracy: Mapping[str, Accuracy]) -> list[Finding]:
    """Return what to do on one link, and the faster methods that were passed over because they lose accuracy."""
    methods = sorted((plan for plan in METHODS if plan in steps), key=lambda plan: float(steps[plan]["step_seconds"]))
    if DENSE not in steps or not methods:
        return []
    limit = PAYS * float(steps[DENSE]["step_seconds"])
    if steps[methods[0]]["step_seconds"] > limit:
        return [_said("faq.codec.dense", result, steps, methods[0])]
    keeping = next((plan for plan in methods if plan in accuracy and accuracy[plan].keeps), None)
    if keeping is None:
        return [_said("faq.codec.unknown", result, steps, methods[0])]
    kept = accuracy[keeping].against_dense
    if steps[keeping]["step_seconds"] > limit or kept is None:
        advice = _said("faq.codec.dont", result, steps, keeping)
    else:
        gain = float(steps[DENSE]["step_seconds"]) / float(steps[keeping]["step_seconds"])
        advice = _said(
            "faq.codec.use",
            result,
            steps,
            keeping,
            gain=Number(gain, "factor"),
            difference=Number(kept.difference, "points", kept.noise),
        )
    return [advice, *_passed_over(result, methods[: methods.index(keeping)], accuracy)]


def _passed_over(result: Result, faster: list[str], accuracy: Mapping[str, Accuracy]) -> list[Finding]:
    """Return why faster methods are not recommended: they lose accuracy, or nobody knows."""
    losing = [plan for plan in faster if plan in accuracy and accuracy[plan].loses]
    unknown = [plan for plan in faster if plan not in losing]
    found = []
    if losing:
        found.append(
            Finding("faq.codec.loses", "open", {"names": _names(losing)}, ACCURACY, accuracy[losing[0]].source)
        )
    if unknown:
        found.append(Finding("faq.codec.unmeasured", "open", {"names": _names(unknown)}, LINKS, result.source))
    return found


def _names(plans: list[str]) -> Words:
    return Words(tuple(METHODS[plan][0] for plan in plans))


def _said(key: str, result: Result, steps: Mapping[str, Row], plan: str, **more: Fact) -> Finding:
    dense, own = steps[DENSE], steps[plan]
    facts: dict[str, Fact] = {
        "rate": Number(float(own["bits_per_second"]), "bits"),
        "ranks": Number(own["ranks"], "count"),
        "best": Words((METHODS[plan][0],)),
        "best_seconds": Number(float(own["step_seconds"]), "seconds"),
        "dense_seconds": Number(float(dense["step_seconds"]), "seconds"),
        **more,
    }
    return Finding(key, "open", facts, LINKS, result.source)
