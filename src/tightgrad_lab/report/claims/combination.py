"""What combining the three is said to do: more efficiency and more stability. From the image case."""

from collections.abc import Callable

from tightgrad_lab.report import cells
from tightgrad_lab.report.claims.judgement import Finding, Judgement, Number, Verdict, judgement
from tightgrad_lab.report.claims.times import step_time
from tightgrad_lab.report.measured.files import Case, Runs

ALL = "clip+accumulate+compress"
SUMMARIES = "image/*/seed*/summary.json"
STEPS = "image/*/seed*/steps.jsonl"


def combined(runs: Runs) -> Judgement:
    """All three against none: time of a step, bytes, accuracy, and how far seeds lie apart."""
    case = runs.case("image")
    if case is None or not {"none", ALL} <= case.combinations.keys():
        return Judgement("open", (), ("combinations",))
    return judgement([_time(case), _bytes(case), _accuracy(case), _skipped(case)], "combinations")


def _finding(case: Case, key: str, verdict: Verdict, **facts: Number) -> Finding:
    return Finding(key, verdict, facts, "combinations", cells.source(case, SUMMARIES))


def _time(case: Case) -> Finding | None:
    found = step_time(case, ALL)
    return (
        Finding("found.combined.time", *found, "combinations", cells.source(case, SUMMARIES, STEPS)) if found else None
    )


def _bytes(case: Case) -> Finding | None:
    found = cells.ratio(case, ALL, "wire_bytes")
    if found is None:
        return None
    facts = {
        "ratio": Number(found, "factor"),
        "own": Number(cells.mean(case, ALL, "wire_bytes"), "bytes"),
        "base": Number(cells.mean(case, "none", "wire_bytes"), "bytes"),
    }
    return _finding(case, "found.combined.bytes", "supported" if found < 1 else "refuted", **facts)


def _accuracy(case: Case) -> Finding | None:
    found = cells.comparison(case, ALL)
    if found is None or found.noise is None:
        return None
    verdict: Verdict = "refuted" if found.verdict == "short" else "supported"
    unit = "points" if cells.is_share(case) else "signed"
    difference = Number(found.difference, "points" if unit == "points" else "signed", found.noise)
    return _finding(case, "found.combined.accuracy", verdict, difference=difference)


def _skipped(case: Case) -> Finding | None:
    """Stability in the strict sense: steps whose gradient was not finite. Only said if there were any."""
    own, base = (sum(case.values(name, "skipped_steps").values()) for name in (ALL, "none"))
    if own == base:
        return None
    facts = {"own": Number(own, "count"), "base": Number(base, "count")}
    return _finding(case, "found.combined.skipped", "supported" if own < base else "refuted", **facts)


JUDGES: dict[str, Callable[[Runs], Judgement]] = {"combined": combined}
