"""What accumulation is said to do: a large batch in little memory, faster and more stable convergence.

Convergence is judged from `large_batches`: batches accumulated to k times the smallest, on the same samples.
"""

from collections.abc import Callable, Mapping
from statistics import fmean, variance
from typing import Any

from tightgrad_lab.report import cells
from tightgrad_lab.report.claims.judgement import Fact, Finding, Judgement, Number, Verdict, Words, judgement, of_share
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.results import Result, read_best
from tightgrad_lab.report.measured.stats import Comparison, compare, variance_ratio

CONVERGENCE = "large_batches"
WINDOW = "window_timeline"
MEMORY = "accumulation_memory"
ROUNDING = 1e-5
"""Relative errors of float32 sums stay below this; other denominators give errors far above it."""
SUMMARIES = "image/*/seed*/summary.json"
Row = Mapping[str, Any]


def _accuracy(row: Row) -> dict[int, float]:
    return dict(enumerate(map(float, row["accuracy"])))


def _base(result: Result) -> Row:
    return next(row for row in result.table if row["batch"] == result.figure["base_batch"] and row["rule"] == "none")


def best_rules(result: Result) -> list[tuple[Row, Comparison]]:
    """For each larger batch the rule with the best accuracy, against the smallest batch without any."""
    base = _base(result)
    batches = sorted({int(row["batch"]) for row in result.table} - {int(base["batch"])})
    best = [max((r for r in result.table if r["batch"] == b), key=lambda r: fmean(r["accuracy"])) for b in batches]
    samples = int(result.figure["test_samples"])
    return [(row, compare(_accuracy(row), _accuracy(base), samples=samples)) for row in best]


def _rule(row: Row) -> Words:
    return Words((f"large_batches.figure.rule.{row['rule']}",))


def efficiency(runs: Runs) -> Judgement:
    """Accumulation makes training more efficient: the time of a step, and the bytes of a window."""
    memory, window = read_best(runs.root, MEMORY), read_best(runs.root, WINDOW)
    return judgement([_time(memory) if memory else None, _once(window) if window else None], MEMORY, WINDOW)


def _time(result: Result) -> Finding | None:
    """The time of a step at the same effective batch, cut finest, over that of the batch in one piece."""
    points = {int(point["micro_batch"]): float(point["step_seconds"]) for point in result.figure["points"]}
    if len(points) < 2:
        return None
    fine, whole = points[min(points)], points[max(points)]
    facts: dict[str, Fact] = {
        "batch": Number(max(points), "count"),
        "micro_batch": Number(min(points), "count"),
        "ratio": Number(fine / whole, "factor"),
        "own": Number(fine, "seconds"),
        "base": Number(whole, "seconds"),
    }
    return Finding("found.step_time", "supported" if fine < whole else "refuted", facts, MEMORY, result.source)


def _once(result: Result) -> Finding:
    """The bytes of the longest window, summed once, against a sum after every micro-batch."""
    row = max(result.table, key=lambda row: row["micro_batches"])
    own, base = float(row["wire_bytes"]), float(row["wire_bytes_if_each_synced"])
    facts: dict[str, Fact] = {
        "most": Number(row["micro_batches"], "count"),
        "own": Number(own, "bytes"),
        "base": Number(base, "bytes"),
    }
    return Finding("found.once", "supported" if own < base else "refuted", facts, WINDOW, result.source)


def convergence(runs: Runs) -> Judgement:
    """Accumulation improves the speed of convergence: per step, and per sample."""
    result = read_best(runs.root, CONVERGENCE)
    if result is None:
        return Judgement("open", (), (CONVERGENCE,))
    return judgement([_per_step(result), _per_sample(result)], CONVERGENCE)


def _per_step(result: Result) -> Finding | None:
    """The largest batch that still reaches the accuracy of the smallest, in how many times fewer steps."""
    rows = [(row, one) for row, one in best_rules(result) if one.verdict != "unknown"]
    if not rows:
        return None
    reached = [(row, one) for row, one in rows if one.verdict != "short"]
    row, one = max(reached or rows, key=lambda pair: pair[0]["batch"] if reached else pair[1].difference)
    base = _base(result)
    facts: dict[str, Fact] = {
        "batch": Number(row["batch"], "count"),
        "rule": _rule(row),
        "difference": Number(one.difference, "points", one.noise),
        "base_batch": Number(base["batch"], "count"),
        "steps": Number(row["steps"], "count"),
        "base_steps": Number(base["steps"], "count"),
    }
    verdict: Verdict = "supported" if reached else "refuted"
    return Finding("found.steps" if reached else "found.steps.none", verdict, facts, CONVERGENCE, result.source)


def _per_sample(result: Result) -> Finding | None:
    """After the same samples: batches whose best rule is ahead of the smallest batch by more than the noise."""
    rows = [(row, one) for row, one in best_rules(result) if one.verdict != "unknown"]
    if not rows:
        return None
    ahead = sum(one.verdict == "ahead" for _, one in rows)
    row, one = max(rows, key=lambda pair: pair[1].difference)
    facts: dict[str, Fact] = {
        "ahead": Number(ahead, "count"),
        "count": Number(len(rows), "count"),
        "batch": Number(row["batch"], "count"),
        "rule": _rule(row),
        "difference": Number(one.difference, "points", one.noise),
    }
    return Finding("found.samples", of_share(ahead, len(rows)), facts, CONVERGENCE, result.source)


def stability(runs: Runs) -> Judgement:
    """Accumulation makes convergence more stable: the spread of the final accuracy over seeds, and divergence."""
    result = read_best(runs.root, CONVERGENCE)
    if result is None:
        return Judgement("open", (), (CONVERGENCE,))
    return judgement([_spread(result), _diverged(result)], CONVERGENCE)


def _spread(result: Result) -> Finding | None:
    """The pooled variance of the larger batches, each with its best rule, over that of the smallest batch."""
    base = _base(result)["accuracy"]
    others = [row["accuracy"] for row, _ in best_rules(result)]
    if len(base) < 2 or not others or not variance(base):
        return None
    pooled = fmean(variance(values) for values in others)
    degrees = (sum(len(values) - 1 for values in others), len(base) - 1)
    low, high = variance_ratio(pooled / variance(base), *degrees)
    facts: dict[str, Fact] = {
        "own": Number(pooled**0.5, "points_plain"),
        "base": Number(variance(base) ** 0.5, "points_plain"),
        "ratio": Number((pooled / variance(base)) ** 0.5, "factor"),
        "low": Number(low**0.5, "factor"),
        "high": Number(high**0.5, "factor"),
    }
    return Finding("found.spread", "supported" if high < 1 else "refuted", facts, CONVERGENCE, result.source)


def _diverged(result: Result) -> Finding | None:
    """Only said if some run diverged: at which rules larger batches did, and whether the smallest did."""
    base = _base(result)
    larger = [row for row in result.table if row["batch"] != base["batch"] and row["diverged"]]
    count = sum(row["diverged"] for row in larger)
    if not count and not base["diverged"]:
        return None
    facts = {"count": Number(count, "count"), "base": Number(base["diverged"], "count")}
    verdict: Verdict = "supported" if count < base["diverged"] else "refuted"
    return Finding("found.diverged", verdict, facts, CONVERGENCE, result.source)


def image_memory(runs: Runs) -> Finding | None:
    """Peak memory of the image case with accumulation, over that without."""
    case = runs.case("image")
    found = cells.ratio(case, "accumulate", "peak_memory_bytes") if case else None
    if case is None or found is None:
        return None
    facts: dict[str, Fact] = {
        "ratio": Number(found, "factor"),
        "own": Number(cells.mean(case, "accumulate", "peak_memory_bytes"), "bytes"),
        "base": Number(cells.mean(case, "none", "peak_memory_bytes"), "bytes"),
    }
    verdict: Verdict = "supported" if found < 1 else "refuted"
    return Finding("found.image_memory", verdict, facts, "combinations", cells.source(case, SUMMARIES))


def large_batch(runs: Runs) -> Judgement:
    """Accumulation imitates a large batch: the error of its gradient against that of the batch in one piece."""
    result = read_best(runs.root, WINDOW)
    if result is None:
        return Judgement("open", (), (WINDOW,))
    return judgement([_exact(result)], WINDOW)


def _exact(result: Result) -> Finding | None:
    rows = [row for row in result.table if row["micro_batches"] > 1]
    if not rows:
        return None
    worst = max(max(row["relative_error"]) for row in rows)
    facts: dict[str, Fact] = {
        "seeds": Number(len(rows[0]["relative_error"]), "count"),
        "most": Number(max(row["micro_batches"] for row in rows), "count"),
        "worst": Number(worst, "number"),
        "loop": Number(max(max(row["relative_error_of_loop"]) for row in rows), "percent"),
    }
    return Finding("found.exact", "supported" if worst < ROUNDING else "refuted", facts, WINDOW, result.source)


def memory(runs: Runs) -> Judgement:
    """It does so in little memory: peak memory at the same effective batch."""
    return judgement([_window_memory(read_best(runs.root, WINDOW)), image_memory(runs)], WINDOW, "accumulation_memory")


def _window_memory(result: Result | None) -> Finding | None:
    rows = {row["micro_batches"]: row for row in result.table} if result else {}
    if result is None or 1 not in rows or len(rows) < 2:
        return None
    most = max(rows)
    own, base = float(rows[most]["peak_memory_bytes"]), float(rows[1]["peak_memory_bytes"])
    facts: dict[str, Fact] = {
        "most": Number(most, "count"),
        "ratio": Number(own / base, "factor"),
        "own": Number(own, "bytes"),
        "base": Number(base, "bytes"),
    }
    verdict: Verdict = "supported" if own < base else "refuted"
    return Finding("found.window_memory", verdict, facts, WINDOW, result.source)


JUDGES: dict[str, Callable[[Runs], Judgement]] = {
    "large_batch": large_batch,
    "memory": memory,
    "accumulated_efficiency": efficiency,
    "convergence": convergence,
    "stable_convergence": stability,
}
