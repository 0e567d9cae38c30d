"""Questions and answers, answered by the measured rows."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median

from markupsafe import Markup

from tightgrad_lab.report import cells
from tightgrad_lab.report.claims.accumulation import best_rules
from tightgrad_lab.report.claims.judged import Evidence
from tightgrad_lab.report.claims.judgement import Fact, Finding, Number, Words
from tightgrad_lab.report.claims.link_advice import by_link
from tightgrad_lab.report.claims.words import in_words
from tightgrad_lab.report.links import commands, pairs_in_words
from tightgrad_lab.report.measured.files import Case, Runs, find
from tightgrad_lab.report.measured.results import read_best
from tightgrad_lab.report.measured.stats import compare
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.schema import COMBINATIONS

ALL = "clip+accumulate+compress"
SUMMARIES = "image/*/seed*/summary.json"
STEPS = "image/*/seed*/steps.jsonl"


@dataclass(frozen=True, slots=True)
class Answer:
    """What was measured about a question, and what is still missing."""

    name: str
    evidence: tuple[Evidence, ...]
    open: Markup


def _finding(case: Case, key: str, pair: str, facts: dict[str, Fact], *patterns: str) -> Finding:
    return Finding(key, "open", facts, pair, cells.source(case, *(patterns or (SUMMARIES,))))


def _difference(case: Case, combination: str) -> Number | None:
    found = cells.comparison(case, combination)
    if found is None:
        return None
    return Number(found.difference, "points" if cells.is_share(case) else "signed", found.noise)


EXPLODED = 10
"""A final loss so many times that of the cured run is no loss to compare with: the training diverged."""


def max_norm(runs: Runs) -> list[Finding]:
    """Return what bounds too low and too high did, the norms of `loss_spikes`, and the one bound of the image case."""
    return [one for one in (*_bounds(runs), _usual_norm(runs), _image_bound(runs)) if one is not None]


def _bounds(runs: Runs) -> list[Finding]:
    """What the doctor's bound changed where the first was far too low, or never acted."""
    result = read_best(runs.root, "common_failures")
    rows = {row["problem"]: row for row in result.table} if result else {}
    found = []
    for problem, key in (("over_clipping", "faq.max_norm.low"), ("idle_clipping", "faq.max_norm.high")):
        row = rows.get(problem)
        before = find(row["plan_before"], "max_norm") if row else None
        after = find(row["plan_after"], "max_norm") if row and row["plan_after"] else None
        if result is None or row is None or before is None or after is None or None in row["before"] + row["after"]:
            continue
        gain = compare(dict(enumerate(row["after"])), dict(enumerate(row["before"])), samples=None)
        facts: dict[str, Fact] = {
            "before": Number(before, "number"),
            "after": Number(after, "number"),
            "loss_before": Number(fmean(row["before"]), "number"),
            "loss_after": Number(fmean(row["after"]), "number"),
            "difference": Number(gain.difference, "signed", gain.noise),
        }
        if min(row["before"]) > EXPLODED * max(row["after"]):
            key = "faq.max_norm.exploded"
            facts = {name: facts[name] for name in ("before", "after", "loss_after")}
        found.append(Finding(key, "open", facts, "common_failures", result.source))
    return found


def _usual_norm(runs: Runs) -> Finding | None:
    """How far usual norms and those of outliers lie apart: the room that a bound has."""
    result = read_best(runs.root, "loss_spikes")
    own = next((row for row in result.table if row["method"] == "none"), None) if result else None
    if result is None or own is None:
        return None
    usual = [run["usual_norm"] for run in own["runs"] if run["usual_norm"] is not None]
    outlier = [run["outlier_norm"] for run in own["runs"] if run["outlier_norm"] is not None]
    if not usual or not outlier:
        return None
    facts: dict[str, Fact] = {
        "usual": Number(median(usual), "number"),
        "outlier": Number(median(outlier), "number"),
    }
    key = "faq.max_norm.room" if median(outlier) > median(usual) else "faq.max_norm.no_room"
    return Finding(key, "open", facts, "loss_spikes", result.source)


def _image_bound(runs: Runs) -> Finding | None:
    case = runs.case("image")
    clipped = list(case.combinations.get("clip", {}).values()) if case else []
    shares = [share for run in clipped if (share := cells.clipped_share(run)) is not None]
    norms = [norm for run in clipped for norm in cells.finite_norms(run)]
    bound = find(clipped[0].config["plan"], "max_norm") if clipped else None
    difference = _difference(case, "clip") if case else None
    if case is None or not shares or not norms or difference is None or not isinstance(bound, int | float):
        return None
    facts: dict[str, Fact] = {
        "max_norm": Number(bound, "number"),
        "share": Number(fmean(shares), "percent"),
        "median": Number(median(norms), "number"),
        "largest": Number(max(norms), "number"),
        "difference": difference,
    }
    return _finding(case, "faq.max_norm.image", "image_case", facts, SUMMARIES, STEPS)


def learning_rate(runs: Runs) -> list[Finding]:
    """The best rule at each larger batch of `large_batches`, and what the same rate would have given."""
    result = read_best(runs.root, "large_batches")
    if result is None:
        return []
    found = []
    for row, against in best_rules(result):
        plain = next((r for r in result.table if (r["batch"], r["rule"]) == (row["batch"], "none")), None)
        if plain is None:
            continue
        own, same = (dict(enumerate(map(float, one["accuracy"]))) for one in (row, plain))
        gain = compare(own, same, samples=int(result.figure["test_samples"]))
        facts: dict[str, Fact] = {
            "count": Number(row["batch"] / result.figure["base_batch"], "count"),
            "rule": Words((f"large_batches.figure.rule.{row['rule']}",)),
            "value": Number(fmean(own.values()), "percent"),
            "rate": Number(row["learning_rate"], "number"),
            "same": Number(fmean(same.values()), "percent"),
            "gain": Number(gain.difference, "points", gain.noise),
            "base": Number(against.difference, "points", against.noise),
        }
        found.append(Finding("faq.learning_rate.rule", "open", facts, "large_batches", result.source))
    return found


def codec(runs: Runs) -> list[Finding]:
    """Return the advice for every link of `link_speeds`, and what compression did on the link of this machine."""
    case = runs.case("image")
    fewer = cells.ratio(case, "none", "wire_bytes", base="compress") if case else None
    time = cells.ratio(case, "compress", "step_seconds") if case else None
    found = by_link(runs)
    if case is None or fewer is None or time is None:
        return found
    facts: dict[str, Fact] = {"factor": Number(fewer, "times"), "time": Number(time, "factor")}
    return [*found, _finding(case, "faq.codec.image", "combinations", facts)]


def combine(runs: Runs) -> list[Finding]:
    """Whether the effects of the three add up."""
    case = runs.case("image")
    found = {name: _difference(case, name) if case else None for name in ("clip", "accumulate", "compress", ALL)}
    known = {name: value for name, value in found.items() if value is not None}
    if case is None or len(known) < len(found):
        return []
    total = sum(value.value for name, value in known.items() if name != ALL)
    facts: dict[str, Fact] = {
        **{name: value for name, value in known.items() if name != ALL},
        "all": known[ALL],
        "sum": Number(total, known[ALL].unit),
    }
    return [_finding(case, "faq.combine.image", "combinations", facts)]


def short(runs: Runs) -> list[Finding]:
    """The compressed combinations of the image case that lost more than the noise."""
    case = runs.case("image")
    if case is None:
        return []
    found = {name: cells.comparison(case, name) for name in COMBINATIONS if "compress" in name}
    known = {name: result for name, result in found.items() if result}
    if not known:
        return []
    if any(result.verdict == "unknown" for result in known.values()):
        return [_finding(case, "faq.short.unknown", "image_case", {})]
    worst = [name for name, result in known.items() if result.verdict == "short"]
    if not worst:
        return [_finding(case, "faq.short.none", "image_case", {"count": Number(len(known), "count")})]
    names = Words(tuple(f"combination.{name}" for name in worst))
    return [_finding(case, "faq.short.some", "image_case", {"names": names})]


QUESTIONS: dict[str, tuple[Callable[[Runs], list[Finding]], tuple[str, ...]]] = {
    "max_norm": (
        max_norm,
        ("loss_spikes", "common_failures"),
    ),
    "learning_rate": (learning_rate, ("large_batches",)),
    "codec": (codec, ("link_speeds",)),
    "combine": (combine, ("combinations",)),
    "short": (short, ("image_case",)),
}
"""What answers a question, and the pairs that it should be answered by."""


def answers(runs: Runs, texts: Texts) -> dict[str, Answer]:
    """What was measured about the questions that have such answers, by their names; what is missing is said."""
    found = {}
    for question, (measure, pairs) in QUESTIONS.items():
        evidence = tuple(Evidence(in_words(one, texts), one) for one in measure(runs))
        missing = [name for name in pairs if name not in {one.finding.pair for one in evidence}]
        still = [name for name in missing if not runs.measured(name)] or ([] if evidence else missing)
        said = texts.html("faq.open", pairs=pairs_in_words(texts, *still), command=commands(*still)) if still else ""
        found[question] = Answer(question, evidence, Markup(said))
    return found
