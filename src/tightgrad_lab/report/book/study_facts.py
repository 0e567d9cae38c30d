"""Facts of the studies and of the papers' claims, each with the verdict whether the sign is the paper's."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from tightgrad_lab.report.claims.judgement import Fact, Finding, Number, Verdict, of_share
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.results import Result, read_best
from tightgrad_lab.report.measured.stats import Comparison, compare
from tightgrad_lab.schema import STUDIES

Row = Mapping[str, Any]
Facts = dict[str, Fact]
Signed = tuple[Verdict, Facts]
APART = 10
"""LARS: the largest ratio of a network's layers over the smallest from which on they differ greatly."""
EQUAL = 1e-5
"""The largest relative difference of two frameworks that is rounding of float32."""


def _values(row: Row, key: str = "loss") -> dict[int, float]:
    """The values of a row by seed; one that is not finite counts as very large."""
    return {seed: 1e9 if value is None else float(value) for seed, value in enumerate(row[key])}


def _row(rows: Sequence[Row], **wanted: object) -> Row:
    return next(row for row in rows if all(row[key] == value for key, value in wanted.items()))


def _below(own: Row, base: Row, key: str = "loss") -> Comparison:
    """Whether the first row's losses are lower; "ahead" means lower by more than the noise."""
    return compare(*({k: -v for k, v in _values(row, key).items()} for row in (own, base)), samples=None)


def _difference(found: Comparison) -> Number:
    return Number(-found.difference, "signed", found.noise)


def small_batches(result: Result) -> Signed:
    """Marek: at equal text, the smallest batch with the half-life held, with beta2 fixed, and the largest batch."""
    rows = result.table
    small, large = min(row["batch"] for row in rows), max(row["batch"] for row in rows)
    held, fixed = _row(rows, batch=small, choice="held"), _row(rows, batch=small, choice="fixed")
    rule, base = _row(rows, batch=small, choice="rule"), _row(rows, batch=large, choice="fixed")
    against_fixed, against_large = _below(held, fixed), _below(held, base)
    said = [against_fixed.verdict == "ahead", against_large.verdict != "short"]
    return of_share(sum(said), 2), {
        "smallest": Number(small, "count"),
        "largest": Number(large, "count"),
        "smallest_loss": Number(fmean(_values(held).values()), "number"),
        "fixed_loss": Number(fmean(_values(fixed).values()), "number"),
        "largest_loss": Number(fmean(_values(base).values()), "number"),
        "rule_loss": Number(fmean(_values(rule).values()), "number"),
        "against_fixed": _difference(against_fixed),
        "against_largest": _difference(against_large),
        "held_rate": Number(held["learning_rate"], "number"),
        "largest_rate": Number(base["learning_rate"], "number"),
        "rule_rate": Number(rule["learning_rate"], "number"),
        "seeds": Number(len(held["loss"]), "count"),
    }


def critical_batch(result: Result) -> Signed:
    """Merrill: the critical batch size early and late, and a batch that grows along with it."""
    places = result.figure["places"]
    plans = {row["plan"]: row for row in result.table}
    small, large, growing = plans["small"], plans["large"], plans["growing"]
    early, late = places[0]["critical_batch"], places[-1]["critical_batch"]
    against_small, large_against = _below(growing, small), _below(large, small)
    said = [late > early, growing["steps"] < small["steps"] and against_small.verdict != "short"]
    return of_share(sum(said), 2), {
        "early": Number(early, "count"),
        "late": Number(late, "count"),
        "early_place": Number(places[0]["place"], "count"),
        "late_place": Number(places[-1]["place"], "count"),
        "steps": Number(growing["steps"] / small["steps"], "percent"),
        "small": Number(small["batches"][0], "count"),
        "large": Number(large["batches"][0], "count"),
        "small_loss": Number(fmean(_values(small).values()), "number"),
        "growing_loss": Number(fmean(_values(growing).values()), "number"),
        "large_loss": Number(fmean(_values(large).values()), "number"),
        "growing_difference": _difference(against_small),
        "large_difference": _difference(large_against),
        "large_steps": Number(large["steps"] / small["steps"], "percent"),
        "seeds": Number(len(small["loss"]), "count"),
    }


def muon(result: Result) -> Signed:
    """Spikes with Muon, without a bound and with one, and with AdamW alone."""
    facts = Facts()
    for row in result.table:
        name = f"{row['optimizer']}_{'unclipped' if row['method'] == 'none' else 'clipped'}"
        facts[name] = Number(fmean(run["spikes"] for run in row["runs"]), "number")
        facts[f"{name}_loss"] = Number(fmean(run["final_loss"] for run in row["runs"]), "number")
        facts["outliers"] = Number(result.settings["spikes"]["outliers"], "count")
        facts["seeds"] = Number(len(row["runs"]), "count")
    return "open", facts


def qsgd(result: Result) -> Signed:
    """With s = sqrt(n) levels: the second moment is at most twice, and the code takes at most 2.8 n + 32 bits."""
    rows = [row for row in result.table if row["paper"] == "qsgd"]
    moment = max(row["second_moment"] for row in rows)
    normal = max(row["bits"] / row["size"] for row in rows if row["vector"] == "normal" and row["size"] > 1000)
    real = _row(rows, vector="gradient")
    within = sum(row["bits"] <= 2.8 * row["size"] + 32 for row in rows)
    verdict: Verdict = "refuted" if moment > 2 else of_share(within, len(rows)) if within else "mixed"
    return verdict, {
        "moment": Number(moment, "number"),
        "normal_bits": Number(normal, "number"),
        "real_bits": Number(real["bits"] / real["size"], "number"),
        "within": Number(within, "count"),
        "count": Number(len(rows), "count"),
        "smallest": Number(min(row["size"] for row in rows), "count"),
        "largest": Number(max(row["size"] for row in rows), "count"),
    }


def underflow(result: Result) -> Signed:
    """The share of a gradient that fp16 turns into zero, by loss scale."""
    rows = sorted((row for row in result.table if row["paper"] == "micikevicius"), key=lambda row: row["loss_scale"])
    falls = [later["lost"] < earlier["lost"] for earlier, later in pairwise(rows)]
    facts = Facts()
    for key, row in zip(("plain", "middle", "most"), rows, strict=True):
        facts[key] = Number(row["lost"], "percent")
        facts[f"{key}_scale"] = Number(row["loss_scale"], "count")
    return of_share(sum(falls), len(falls)), facts


def layer_ratios(result: Result) -> Signed:
    """The norm of a layer's weights over that of its gradient: the smallest and the largest of a network."""
    ratios = [row["ratio"] for row in result.table if row["paper"] == "lars"]
    apart = max(ratios) / min(ratios)
    verdict: Verdict = "supported" if apart >= APART else "refuted"
    return verdict, {
        "least": Number(min(ratios), "number"),
        "most": Number(max(ratios), "number"),
        "apart": Number(apart, "factor"),
        "layers": Number(len(ratios), "count"),
    }


def idle(result: Result) -> Signed:
    """The share of time that ranks wait for the slowest, with few and with many micro-batches a window."""
    rows = sorted((row for row in result.table if row["paper"] == "fairseq"), key=lambda row: row["micro_batches"])
    falls = [later["idle"] < earlier["idle"] for earlier, later in pairwise(rows)]
    facts: Facts = {"ranks": Number(rows[0]["ranks"], "count")}
    for key, row in zip(("one", "some", "many"), rows, strict=True):
        facts[key] = Number(row["idle"], "percent")
        facts[f"{key}_count"] = Number(row["micro_batches"], "count")
    return of_share(sum(falls), len(falls)), facts


def depth(result: Result) -> Signed:
    """Training losses of shallow and deep networks, plain and with shortcuts."""
    rows = result.table
    few, many = min(row["layers"] for row in rows), max(row["layers"] for row in rows)
    facts: Facts = {"few": Number(few, "count"), "many": Number(many, "count")}
    found = {}
    for name, shortcuts in (("plain", False), ("residual", True)):
        shallow, deep = (_row(rows, layers=layers, shortcuts=shortcuts) for layers in (few, many))
        facts[f"{name}_few"] = Number(fmean(_values(shallow).values()), "number")
        facts[f"{name}_many"] = Number(fmean(_values(deep).values()), "number")
        found[name] = _below(deep, shallow)
    said = [found["plain"].verdict == "short", found["residual"].verdict != "short"]
    return of_share(sum(said), 2), facts


def cliff(result: Result) -> Signed:
    """The longest step at the cliff of a one-unit network, without a bound and with one, and where both end."""
    facts = Facts()
    longest = {}
    for key in ("without", "with"):
        places = result.figure["cliff"][key]["places"]
        steps = [sum((b - a) ** 2 for a, b in zip(one, two, strict=True)) ** 0.5 for one, two in pairwise(places)]
        longest[key] = max(steps)
        facts[key] = Number(longest[key], "number")
    facts["bound"] = Number(result.figure["cliff"]["max_norm"], "number")
    return ("supported" if longest["with"] < longest["without"] else "refuted"), facts


def carousel(result: Result) -> Signed:
    """By how much the norm of a gradient changes on its way back through the longest sequence."""
    rows = [row for row in result.figure["backward"] if row["kind"] in ("rnn", "lstm")]
    longest = max(row["length"] for row in rows)
    ends: dict[str, list[float]] = {"rnn": [], "lstm": []}
    for row in rows:
        if row["length"] == longest:
            ends[row["kind"]].append(row["norms"][-1] / row["norms"][0])
    change = {kind: [max(ratio, 1 / ratio) for ratio in ratios] for kind, ratios in ends.items()}
    verdict: Verdict = "supported" if max(change["lstm"]) < min(change["rnn"]) else "refuted"
    return verdict, {
        "length": Number(longest, "count"),
        "lstm": Number(ends["lstm"][0], "factor"),
        "least": Number(min(ends["rnn"]), "factor"),
        "most": Number(max(ends["rnn"]), "factor"),
    }


def dgc(result: Result) -> Signed:
    """Momentum correction with one element in a hundred or fewer, against dense; dropped without memory beside it."""
    rows = {row["method"]: row for row in result.table}
    found = {
        name: compare(_values(rows[name], "accuracy"), _values(rows["dense"], "accuracy"), samples=None)
        for name in ("dgc_01", "topk_01")
    }
    said = [found["dgc_01"].verdict != "short", found["topk_01"].verdict == "short"]
    return of_share(sum(said), 2), {
        "own": Number(found["dgc_01"].difference, "points", found["dgc_01"].noise),
        "dropped": Number(found["topk_01"].difference, "points", found["topk_01"].noise),
        "fewer": Number(fmean(rows["dgc_01"]["compression_factor"]), "times"),
        "seeds": Number(len(rows["dense"]["accuracy"]), "count"),
    }


def frameworks(result: Result) -> Signed:
    """How far clipping by global norm differs between TensorFlow and float64."""
    row = _row(result.table, framework="TensorFlow", operation="tf.clip_by_global_norm")
    verdict: Verdict = "supported" if row["framework_error"] < EQUAL else "refuted"
    return verdict, {
        "error": Number(row["framework_error"], "number"),
        "difference": Number(row["largest_relative_difference"], "number"),
        "version": str(row["version"]),
    }


def warm_up(result: Result) -> Signed:
    """Linear scaling with gradual, no and constant warm-up, at the largest batch that each shares."""
    batches = sorted({row["batch"] for row in result.table if row["rule"] == "linear"})
    batch = batches[-1]
    facts: Facts = {"batch": Number(batch, "count"), "count": Number(len(batches), "count")}
    for key in ("none", "linear", "linear_constant", "linear_gradual"):
        row = _row(result.table, batch=batch, rule=key)
        facts[key] = Number(fmean(row["accuracy"]), "percent")
    base = _row(result.table, batch=result.figure["base_batch"], rule="none")
    facts["base"] = Number(fmean(base["accuracy"]), "percent")
    order = [float(facts[key].value) for key in ("linear_gradual", "linear", "linear_constant")]  # type: ignore[union-attr]
    reached = compare(
        _values(_row(result.table, batch=batch, rule="linear_gradual"), "accuracy"),
        _values(base, "accuracy"),
        samples=None,
    )
    said = [order[2] < min(order[:2]), order[0] > order[1], reached.verdict != "short"]
    return of_share(sum(said), 3), facts


STUDY: dict[str, tuple[str, Callable[[Result], Signed]]] = {
    "small_batches": ("small_batches", small_batches),
    "critical_batch": ("critical_batch", critical_batch),
    "muon": ("muon", muon),
    "paper_qsgd": ("paper_claims", qsgd),
    "paper_underflow": ("paper_claims", underflow),
    "paper_layers": ("paper_claims", layer_ratios),
    "paper_idle": ("paper_claims", idle),
    "paper_depth": ("depth", depth),
    "paper_cliff": ("temporal_order", cliff),
    "paper_carousel": ("temporal_order", carousel),
    "paper_dgc": ("accuracy_vs_bytes", dgc),
    "paper_frameworks": ("clip_stages", frameworks),
    "paper_warm_up": ("large_batches", warm_up),
}
"""Each measurement by its name: the experiment whose result it reads, and what it makes of it."""


def measure(name: str) -> Callable[[Runs], Finding | None]:
    """Return what finds a measurement of `STUDY` in a folder of runs."""
    source, facts = STUDY[name]

    def found(runs: Runs) -> Finding | None:
        result = read_best(runs.root, source)
        if result is None:
            return None
        verdict, known = facts(result)
        return Finding("", verdict, known, STUDIES.get(source, source), result.source)

    return found
