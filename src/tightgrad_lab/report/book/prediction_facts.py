"""What was measured about each question of `predictions.md`; `pick` decides which of its choices is right."""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean

from tightgrad_lab.report import cells
from tightgrad_lab.report.book.facts import ALL, Measure, of_case, of_result
from tightgrad_lab.report.claims.judgement import Fact, Number, Unit, Words
from tightgrad_lab.report.measured.files import Case
from tightgrad_lab.report.measured.results import PUBLISHED, Result, read_result

Facts = dict[str, Fact]
"""None in place of them means that the question cannot be decided: a run that it asks about diverged, for example."""


def read_shown(root: Path, name: str) -> Result | None:
    """The result that the figure is drawn from: this machine's own, else the published one."""
    return read_result(root, name) or read_result(root / PUBLISHED, name)


def _result(name: str, facts: Callable[[Result], Facts | None]) -> Measure:
    return of_result(name, facts, read_shown)


def _turned(result: Result) -> Facts:
    ways = result.figure["ways"]
    return {
        "pick": Number(ways["value"]["cosine"], "number"),
        "norm": Number(ways["norm"]["cosine"], "number"),
        "changed": Number(ways["value"]["changed"], "percent"),
    }


def _biased(result: Result) -> Facts | None:
    rows = {row["method"]: row["bias"] for row in result.table}
    if not rows["global_norm"]:
        return None
    return {
        "pick": Number(rows["value"] / rows["global_norm"], "times"),
        "norm": Number(rows["global_norm"], "number"),
        "value": Number(rows["value"], "number"),
    }


def _grown(result: Result) -> Facts:
    """How much the gradient of the largest recurrent weights grows on its way back over 50 steps, or the most up to."""
    rnn = [one for one in result.figure["backward"] if one["kind"] == "rnn" and one["length"] <= 50]
    one = max(rnn, key=lambda one: (one["gain"], one["length"]))
    norms = one["norms"]
    steps = len(norms) - 1
    growth = norms[-1] / norms[0]
    return {
        "pick": Number(growth, "times"),
        "gain": Number(one["gain"], "number"),
        "steps": Number(steps, "count"),
        "bound": Number(one["gain"] ** steps, "number"),
    }


def _weights(result: Result) -> Facts:
    """The tokens of the shortest and of the longest micro-batch of the drawn window."""
    tokens = [event["weight"] for event in result.figure["events"] if event["kind"] == "forward"]
    return {
        "pick": Number(max(tokens) / min(tokens), "times"),
        "least": Number(min(tokens), "count"),
        "most": Number(max(tokens), "count"),
    }


def _smaller(result: Result) -> Facts:
    rows = {row["micro_batches"]: row["peak_memory_bytes"] for row in result.table}
    first, last = rows[min(rows)], rows[max(rows)]
    return {
        "pick": Number(last / first, "percent"),
        "most": Number(max(rows), "count"),
        "first": Number(first, "bytes"),
        "last": Number(last, "bytes"),
        "ideal": Number(first / max(rows), "bytes"),
    }


def _slower(result: Result) -> Facts:
    points = {int(one["micro_batch"]): one["step_seconds"] for one in result.figure["points"]}
    least, most = min(points), max(points)
    return {
        "pick": Number(points[least] / points[most], "times"),
        "most": Number(most, "count"),
        "alone": Number(points[least], "seconds"),
        "whole": Number(points[most], "seconds"),
    }


def _largest(result: Result) -> Facts:
    one = next(one for one in result.figure["families"] if one["family"] == "sparsify")
    return {"pick": Number(one["relative_error"], "number"), "factor": Number(one["compression_factor"], "times")}


def _pruned(result: Result) -> Facts:
    one = next(row for row in result.table if row["codec"].startswith("StochasticPrune"))
    return {"pick": Number(one["relative_error"], "number"), "averaged": Number(one["averaged_error"], "number")}


def _slow_link(result: Result) -> Facts:
    limited = [row for row in result.table if row["is_limited"]]
    row = min(limited, key=lambda row: row["bits_per_second"])
    fewer = row["dense_wire_bytes"] / row["best_wire_bytes"]
    return {
        "pick": Number(row["gain"], "times"),
        "rate": Number(row["bits_per_second"], "bits"),
        "fewer": Number(fewer, "times"),
        "rest": Number(row["no_communication_seconds"], "seconds"),
    }


def _outlier(result: Result) -> Facts:
    runs = next(row for row in result.table if row["method"] == "none")["runs"]
    usual = fmean(run["usual_norm"] for run in runs if run["usual_norm"] is not None)
    outlier = fmean(run["outlier_norm"] for run in runs if run["outlier_norm"] is not None)
    return {
        "pick": Number(outlier / usual, "times"),
        "usual": Number(usual, "number"),
        "outlier": Number(outlier, "number"),
    }


def _percentile(result: Result) -> Facts:
    rows = {row["method"]: fmean(run["clip_rate"] for run in row["runs"]) for row in result.table}
    return {"pick": Number(rows["autoclip"], "percent"), "zclip": Number(rows["zclip"], "percent")}


def _clip_time(result: Result) -> Facts:
    lane = next(lane for lane in result.figure["lanes"] if lane["lane"] == "multiply")["seconds"]
    own = lane["norm"] + lane["factor"] + lane["multiply"]
    return {
        "pick": Number(own / lane["backward"], "percent"),
        "clip": Number(own, "seconds"),
        "backward": Number(lane["backward"], "seconds"),
    }


def _accuracies(result: Result) -> dict[tuple[int, str], float]:
    return {(row["batch"], row["rule"]): fmean(row["accuracy"]) for row in result.table if row["accuracy"]}


def _large(result: Result) -> Facts | None:
    """The largest batch at the unchanged rate against the smallest."""
    known = _accuracies(result)
    base, most = result.figure["base_batch"], max(row["batch"] for row in result.table)
    if not {(base, "none"), (most, "none")} <= known.keys():
        return None
    steps = {row["batch"]: row["steps"] for row in result.table if row["rule"] == "none"}
    return {
        "pick": Number(known[most, "none"] - known[base, "none"], "points"),
        "batch": Number(most, "count"),
        "base_batch": Number(base, "count"),
        "own": Number(known[most, "none"], "percent"),
        "base": Number(known[base, "none"], "percent"),
        "steps": Number(steps[most], "count"),
        "base_steps": Number(steps[base], "count"),
    }


LAYERWISE = ("lars", "lamb")


def _rule(result: Result) -> Facts | None:
    """The best rule at the largest batch: none, sqrt, one of the linear ones, or a layer-wise one."""
    most = max(row["batch"] for row in result.table)
    rules = {rule: value for (batch, rule), value in _accuracies(result).items() if batch == most}
    if not {"none", "linear"} <= rules.keys():
        return None
    best = max(rules, key=lambda rule: rules[rule])
    kind = "layerwise" if best in LAYERWISE else "linear" if best.startswith("linear") else best
    return {
        "pick": kind,
        "batch": Number(most, "count"),
        "best": Words((f"large_batches.figure.rule.{best}",)),
        "own": Number(rules[best], "percent"),
        "linear": Number(rules["linear"], "percent"),
        "none": Number(rules["none"], "percent"),
    }


def _right_loops(result: Result) -> Facts:
    rows = [row for row in result.table if row["ragged"]]
    right = sum(row["ragged"]["outcome"] == "right" for row in rows)
    return {
        "pick": Number(right / len(rows), "percent"),
        "right": Number(right, "count"),
        "count": Number(len(rows), "count"),
    }


def _with_momentum(result: Result) -> Facts | None:
    """What feedback adds to the largest 1 % without momentum and at 0.9, each at its own best rate."""
    found = {
        (row["feedback"], row["momentum"]): fmean(row["accuracy"])
        for row in result.figure["feedback"]
        if row["method"] == "topk_1" and row["accuracy"]
    }
    without, kept = "none", "error_feedback"
    if len(found.keys() & {(way, momentum) for way in (without, kept) for momentum in (0.0, 0.9)}) < 4:
        return None
    return {
        "pick": Number(found[kept, 0.9] - found[without, 0.9], "points"),
        "calm": Number(found[kept, 0.0] - found[without, 0.0], "points"),
        "without": Number(found[without, 0.9], "percent"),
        "own": Number(found[kept, 0.9], "percent"),
    }


def _fewer(result: Result) -> Facts | None:
    factors = next(row for row in result.table if row["method"] == "dgc_01")["compression_factor"]
    return {"pick": Number(fmean(factors), "times")} if factors else None


def _coding(result: Result) -> Facts:
    lanes = {lane["plan"]: lane for lane in result.figure["lanes"]}
    sparse, dense = lanes["sparsify"], lanes["dense"]
    own = sum(sparse["seconds"][stage] for stage in ("encode", "collective", "decode"))
    return {
        "pick": Number(own / dense["seconds"]["collective"], "times"),
        "own": Number(own, "seconds"),
        "sent": Number(sparse["seconds"]["collective"], "seconds"),
        "dense": Number(dense["seconds"]["collective"], "seconds"),
        "fewer": Number(dense["wire_bytes"] / sparse["wire_bytes"], "times"),
    }


def _window_bytes(case: Case) -> Facts | None:
    ratio = cells.ratio(case, "accumulate", "wire_bytes")
    if ratio is None:
        return None
    return {
        "pick": Number(ratio, "factor"),
        "base": Number(cells.mean(case, "none", "wire_bytes"), "bytes"),
        "own": Number(cells.mean(case, "accumulate", "wire_bytes"), "bytes"),
    }


def _residual(case: Case) -> Facts | None:
    both = cells.ratio(case, "accumulate+compress", "peak_memory_bytes", base="accumulate")
    alone = cells.ratio(case, "accumulate", "peak_memory_bytes")
    if both is None or alone is None:
        return None
    return {
        "pick": Number(both, "factor"),
        "alone": Number(alone, "factor"),
        "before": Number(cells.mean(case, "accumulate", "peak_memory_bytes"), "bytes"),
        "after": Number(cells.mean(case, "accumulate+compress", "peak_memory_bytes"), "bytes"),
    }


def _too_tight(result: Result) -> Facts:
    panel = next(one for one in result.figure["panels"] if one["problem"] == "over_clipping")
    first = fmean(run["before"]["values"][0] for run in panel["runs"])
    before = fmean(run["before"]["values"][-1] for run in panel["runs"])
    after = fmean(run["after"]["values"][-1] for run in panel["runs"])
    return {
        "pick": Number(before / first, "percent"),
        "steps": Number(len(panel["runs"][0]["before"]["values"]), "count"),
        "first": Number(first, "number"),
        "before": Number(before, "number"),
        "after": Number(after, "number"),
    }


def _verdict(case: Case) -> Facts | None:
    found = cells.comparison(case, ALL)
    if found is None or found.verdict == "unknown":
        return None
    return {
        "pick": found.verdict,
        "difference": Number(found.difference, "points", found.noise),
        "own": Number(cells.mean(case, ALL, "value"), "percent"),
        "base": Number(cells.mean(case, "none", "value"), "percent"),
    }


def _four_bits(case: Case) -> Facts | None:
    fewer = cells.ratio(case, "none", "wire_bytes", base="compress")
    return {"pick": Number(fewer, "times")} if fewer else None


def _simplest(case: Case) -> Facts | None:
    """All three techniques against the best of the simple methods."""
    metric = cells.metric_name(case)
    known = {name: scores[metric] for name, scores in case.baselines.items() if metric in scores}
    if not known or ALL not in case.combinations:
        return None
    best = (max if case.higher_is_better else min)(known, key=lambda name: known[name])
    own = cells.mean(case, ALL, "value")
    wins = own > known[best] if case.higher_is_better else own < known[best]
    unit: Unit = "percent" if cells.is_share(case) else "number"
    return {
        "pick": "better" if wins else "worse",
        "own": Number(own, unit),
        "simple": Number(known[best], unit),
        "name": Words((f"baseline.{best}",)),
    }


PREDICTED: dict[tuple[str, str], Measure] = {
    ("clip_geometry", "figure"): _result("clip_geometry", _turned),
    ("clip_geometry", "table"): _result("clip_geometry", _biased),
    ("temporal_order", "figure"): _result("temporal_order", _grown),
    ("window_timeline", "figure"): _result("window_timeline", _weights),
    ("window_timeline", "table"): _result("window_timeline", _smaller),
    ("accumulation_memory", "figure"): _result("accumulation_memory", _slower),
    ("codec_gallery", "figure"): _result("codec_gallery", _largest),
    ("codec_gallery", "table"): _result("codec_gallery", _pruned),
    ("link_speeds", "figure"): _result("link_speeds", _slow_link),
    ("loss_spikes", "figure"): _result("loss_spikes", _outlier),
    ("loss_spikes", "table"): _result("loss_spikes", _percentile),
    ("clip_stages", "figure"): _result("clip_stages", _clip_time),
    ("large_batches", "figure"): _result("large_batches", _large),
    ("large_batches", "table"): _result("large_batches", _rule),
    ("window_states", "table"): _result("window_states", _right_loops),
    ("accuracy_vs_bytes", "figure"): _result("accuracy_vs_bytes", _with_momentum),
    ("accuracy_vs_bytes", "table"): _result("accuracy_vs_bytes", _fewer),
    ("encode_timeline", "figure"): _result("encode_timeline", _coding),
    ("combinations", "figure"): of_case("image", "combinations", _window_bytes),
    ("combinations", "table"): of_case("image", "combinations", _residual),
    ("common_failures", "figure"): _result("common_failures", _too_tight),
    ("image_case", "table"): of_case("image", "image_case", _verdict),
    ("language_cases", "table"): of_case("text", "language_cases", _four_bits),
    ("series_case", "table"): of_case("series", "series_case", _simplest),
}
"""Three questions for each chapter, by the pair and the place in front of which they stand."""
