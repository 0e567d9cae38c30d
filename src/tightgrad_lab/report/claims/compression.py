"""What compression is said to do: fewer bytes, the same accuracy, faster convergence.

From `accuracy_vs_bytes`, which trains the same model with every method; the bytes also from the image case.
"""

from collections.abc import Callable, Iterable, Mapping
from statistics import fmean
from typing import Any

from tightgrad_lab.report import cells
from tightgrad_lab.report.claims.judgement import Fact, Finding, Judgement, Number, Verdict, Words, judgement, of_share
from tightgrad_lab.report.claims.links import faster_links, slowest_link
from tightgrad_lab.report.claims.times import step_time
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.results import Result, read_best, read_result
from tightgrad_lab.report.measured.stats import Comparison, compare

PAIR = "accuracy_vs_bytes"
SUMMARIES = "image/*/seed*/summary.json"
STEPS = "image/*/seed*/steps.jsonl"
QUANTISED = ("float16", "bfloat16", "int8")
PRUNED = ("threshold", "sampled_threshold", "stochastic_prune", "prune")
SPARSE = ("topk", "randomk", "random_k", "dgc", "chunked", "dct")
Row = Mapping[str, Any]


def _by_seed(row: Row, key: str) -> dict[int, float]:
    return {seed: float(value) for seed, value in enumerate(row[key]) if value is not None}


def _dense(result: Result) -> Row | None:
    return next((row for row in result.table if row["method"] == "dense" and row["accuracy"]), None)


def _named(row: Row) -> Words:
    feedback = row["feedback"]
    return Words(
        (f"accuracy_vs_bytes.figure.{row['method']}",),
        () if feedback == "none" else (f"accuracy_vs_bytes.table.{feedback}",),
    )


def _compressed(result: Result, kinds: Iterable[str] | None = None) -> list[Row]:
    """Rows of methods whose name begins with one of the kinds; all but dense if none are given."""
    rows = [row for row in result.table if row["method"] != "dense"]
    return rows if kinds is None else [row for row in rows if row["method"].startswith(tuple(kinds))]


def saved_bytes(runs: Runs) -> Judgement:
    """Compression cuts communication: of the compressed runs, those that sent fewer bytes than the dense one."""
    return judgement([_factors(read_best(runs.root, PAIR)), _image_bytes(runs)], PAIR, "combinations")


def _factors(result: Result | None) -> Finding | None:
    if result is None or _dense(result) is None:
        return None
    rows = [row for row in _compressed(result) if row["compression_factor"]]
    if not rows:
        return None
    factors = sorted(((fmean(row["compression_factor"]), row) for row in rows), key=lambda pair: pair[0])
    fewer = sum(factor > 1 for factor, _ in factors)
    facts: dict[str, Fact] = {
        "fewer": Number(fewer, "count"),
        "count": Number(len(rows), "count"),
        "least": Number(factors[0][0], "times"),
        "least_method": _named(factors[0][1]),
        "most": Number(factors[-1][0], "times"),
        "most_method": _named(factors[-1][1]),
    }
    return Finding("found.factors", of_share(fewer, len(rows)), facts, PAIR, result.source)


def _image_bytes(runs: Runs) -> Finding | None:
    case = runs.case("image")
    found = cells.ratio(case, "none", "wire_bytes", base="compress") if case else None
    if case is None or found is None:
        return None
    facts: dict[str, Fact] = {
        "factor": Number(found, "times"),
        "own": Number(cells.mean(case, "compress", "wire_bytes"), "bytes"),
        "base": Number(cells.mean(case, "none", "wire_bytes"), "bytes"),
    }
    verdict: Verdict = "supported" if found > 1 else "refuted"
    return Finding("found.image_bytes", verdict, facts, "combinations", cells.source(case, SUMMARIES))


def quantisation(runs: Runs) -> Judgement:
    """8- and 16-bit quantisation keeps the accuracy."""
    return _keeps(runs, QUANTISED)


def pruning(runs: Runs) -> Judgement:
    """Pruning keeps the accuracy."""
    return _keeps(runs, PRUNED)


def sparsification(runs: Runs) -> Judgement:
    """Sending only the important gradients keeps the accuracy."""
    return _keeps(runs, SPARSE)


def against_dense(result: Result, row: Row) -> Comparison | None:
    """Accuracy of a row against the dense runs of the same seeds; None if it diverged or dense was not run."""
    dense = _dense(result)
    if dense is None or row["diverged"] or not row["accuracy"]:
        return None
    return compare(_by_seed(row, "accuracy"), _by_seed(dense, "accuracy"), samples=int(result.figure["test_samples"]))


def _keeps(runs: Runs, kinds: tuple[str, ...]) -> Judgement:
    """Of these methods, with and without feedback: those whose accuracy is within the noise of dense, or above.

    A method that keeps it in some of the settings that were run, but not in all, supports the claim in part.
    """
    known = (read_best(runs.root, PAIR), read_result(runs.root, PAIR))
    result = next((each for each in known if each is not None and _compressed(each, kinds)), None)
    if result is None:
        return Judgement("open", (), (PAIR,))
    rows = _compressed(result, kinds)
    plain = [row for row in rows if row["feedback"] == "none"]
    corrected = [row for row in rows if row["feedback"] != "none"]
    findings = [
        _group(result, plain, "found.kept.plain", "found.kept.plain.diverged"),
        _group(result, corrected, "found.kept.feedback", "found.kept.feedback.diverged"),
    ]
    return judgement(findings, PAIR)


def _group(result: Result, rows: list[Row], key: str, diverged: str) -> Finding | None:
    """The rows that have the same kind of feedback, in one sentence; the lowest and its noise are named."""
    found = [(row, against_dense(result, row)) for row in rows]
    if not found:
        return None
    known = [(row, one) for row, one in found if one is not None]
    if not known:
        return Finding(diverged, "refuted", {"count": Number(len(rows), "count")}, PAIR, result.source)
    if any(one.verdict == "unknown" for _, one in known):
        return None
    kept = sum(one.verdict != "short" for _, one in known)
    row, worst = min(known, key=lambda pair: pair[1].difference)
    facts: dict[str, Fact] = {
        "kept": Number(kept, "count"),
        "count": Number(len(rows), "count"),
        "worst": _named(row),
        "difference": Number(worst.difference, "points", worst.noise),
        "factor": Number(fmean(row["compression_factor"]), "times"),
    }
    return Finding(key, of_share(kept, len(rows)), facts, PAIR, result.source)


def efficiency(runs: Runs) -> Judgement:
    """Compression improves the efficiency of training: the time of a step."""
    return judgement([faster_links(runs), _image_time(runs)], "link_speeds")


def _image_time(runs: Runs) -> Finding | None:
    case = runs.case("image")
    found = step_time(case, "compress") if case else None
    if case is None or found is None:
        return None
    return Finding("found.image_time", *found, "combinations", cells.source(case, SUMMARIES, STEPS))


def convergence(runs: Runs) -> Judgement:
    """Compression improves the speed of convergence: the loss after the same steps, and the time these take."""
    result = read_best(runs.root, PAIR)
    return judgement([_loss(result) if result else None, slowest_link(runs)], PAIR, "link_speeds")


def _loss(result: Result) -> Finding | None:
    dense = _dense(result)
    rows = [row for row in _compressed(result) if not row["diverged"] and row["loss"]]
    if dense is None or not rows:
        return None

    def better(row: Row) -> Comparison:
        own, base = _by_seed(row, "loss"), _by_seed(dense, "loss")
        return compare({s: -v for s, v in own.items()}, {s: -v for s, v in base.items()}, samples=None)

    compared = [(row, better(row)) for row in rows]
    ahead = sum(one.verdict == "ahead" for _, one in compared)
    short = sum(one.verdict == "short" for _, one in compared)
    if all(one.verdict == "unknown" for _, one in compared):
        lower = sum(one.difference > 0 for _, one in compared)
        known = {"lower": Number(lower, "count"), "count": Number(len(rows), "count")}
        return Finding("found.loss.one", "open", known, PAIR, result.source)
    facts: dict[str, Fact] = {
        "ahead": Number(ahead, "count"),
        "short": Number(short, "count"),
        "count": Number(len(rows), "count"),
        "dense": Number(fmean(_by_seed(dense, "loss").values()), "number"),
    }
    return Finding("found.loss", of_share(ahead, len(rows)), facts, PAIR, result.source)


JUDGES: dict[str, Callable[[Runs], Judgement]] = {
    "bytes": saved_bytes,
    "efficiency": efficiency,
    "quantisation": quantisation,
    "pruning": pruning,
    "sparsification": sparsification,
    "compressed_convergence": convergence,
}
