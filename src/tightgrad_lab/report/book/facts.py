"""What the text says was measured: the facts that fill the braces of its sentences, by the name of the measurement.

A sentence with `@measured name` stands in the book only if the function of that name finds its result.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean, median
from typing import Any

from tightgrad_lab import schema
from tightgrad_lab.report import cells
from tightgrad_lab.report.book import study_facts, table_facts
from tightgrad_lab.report.claims import JUDGES
from tightgrad_lab.report.claims.judgement import Fact, Finding, Number, Words
from tightgrad_lab.report.errors import ReportError
from tightgrad_lab.report.measured.files import Case, Runs
from tightgrad_lab.report.measured.results import Result, read_best

ALL = "clip+accumulate+compress"
Measure = Callable[[Runs], Finding | None]
Row = Mapping[str, Any]


def _judged(claim: str, key: str) -> Measure:
    """The finding of a claim's verdict that has this text."""
    return lambda runs: next((one for one in JUDGES[claim](runs).findings if one.key == key), None)


def of_result(
    name: str,
    facts: Callable[[Result], dict[str, Fact] | None],
    read: Callable[[Path, str], Result | None] = read_best,
) -> Measure:
    """Facts of a result of an experiment: of the one that says most, if not told which; None if they say nothing."""

    def measure(runs: Runs) -> Finding | None:
        result = read(runs.root, name)
        if result is None:
            return None
        try:
            found = facts(result)
        except (LookupError, StopIteration, ValueError) as error:
            missing = (
                f"{error} is not in it" if isinstance(error, KeyError) else "a row that the text needs is not in it"
            )
            again = schema.command(name, full=result.is_full)
            raise ReportError(f"{result.path}: {missing} is not in it. Delete it and run `{again}` again.") from error
        return None if found is None else Finding("", "open", found, name, result.source)

    return measure


def _turn(result: Result) -> dict[str, Fact]:
    """What clipping by norm and by value, to about the same length, does to the direction."""
    rows = {row["method"]: row for row in result.table}
    return {
        "count": Number(len(rows["value"]["cosine"]), "count"),
        "norm": Number(min(rows["global_norm"]["cosine"]), "number"),
        "value": Number(fmean(rows["value"]["cosine"]), "number"),
        "lowest": Number(min(rows["value"]["cosine"]), "number"),
    }


def _largest_norms(result: Result) -> dict[str, Fact]:
    """The largest gradient norms of the kinds of network, without clipping."""
    rows = {row["kind"]: row for row in result.table}
    return {
        "rnn": Number(rows["rnn"]["largest_norm"], "number"),
        "rnn_diverged": Number(rows["rnn"]["diverged"], "count"),
        "rnn_runs": Number(rows["rnn"]["runs"], "count"),
        "lstm": Number(rows["lstm"]["largest_norm"], "number"),
        "transformer_diverged": Number(rows["transformer"]["diverged"], "count"),
        "transformer_runs": Number(rows["transformer"]["runs"], "count"),
    }


def _memory(result: Result) -> dict[str, Fact]:
    """Peak memory from the largest micro-batch to the smallest, and the part that accumulation cannot reduce."""
    points = {int(point["micro_batch"]): fmean(point["peak_memory_bytes"]) for point in result.figure["points"]}
    most, least = max(points), min(points)
    return {
        "most": Number(most, "count"),
        "most_bytes": Number(points[most], "bytes"),
        "least": Number(least, "count"),
        "least_bytes": Number(points[least], "bytes"),
        "fixed": Number(result.figure["fixed_bytes"], "bytes"),
    }


def _families(result: Result) -> dict[str, Fact]:
    """Bytes and error of three families of codecs on one real layer."""
    found = {one["family"]: one for one in result.figure["families"]}
    facts: dict[str, Fact] = {}
    for family in ("quantise", "sparsify", "sign"):
        facts[f"{family}_factor"] = Number(found[family]["compression_factor"], "times")
        facts[f"{family}_error"] = Number(found[family]["relative_error"], "number")
    return facts


def _room(result: Result) -> dict[str, Fact]:
    """How the norms of ordinary steps and of outliers lie without clipping."""
    runs = next(row for row in result.table if row["method"] == "none")["runs"]
    usual = [run["usual_norm"] for run in runs if run["usual_norm"] is not None]
    outlier = [run["outlier_norm"] for run in runs if run["outlier_norm"] is not None]
    return {
        "usual": Number(fmean(usual), "number"),
        "outlier": Number(fmean(outlier), "number"),
        "ratio": Number(fmean(outlier) / fmean(usual), "times"),
    }


def _clip_cost(result: Result) -> dict[str, Fact]:
    """What measuring and scaling take beside forward and backward, and how far the frameworks differ."""
    lane = next(lane for lane in result.figure["lanes"] if lane["lane"] == "multiply")["seconds"]
    own = lane["norm"] + lane["factor"] + lane["multiply"]
    by_norm = [row for row in result.table if row["method"].startswith("global_norm")]
    return {
        "backward": Number(lane["backward"], "seconds"),
        "clip": Number(own, "seconds"),
        "share": Number(own / lane["backward"], "percent"),
        "count": Number(len({row["framework"] for row in by_norm}), "count"),
        "difference": Number(max(row["largest_relative_difference"] for row in by_norm), "number"),
    }


def _batches(result: Result) -> dict[str, Fact]:
    """The largest batch: at the unchanged rate, with the linear rule, and with the best rule."""
    most = max(row["batch"] for row in result.table)
    rows = {row["rule"]: fmean(row["accuracy"]) for row in result.table if row["batch"] == most}
    base_batch = result.figure["base_batch"]
    base = next(row for row in result.table if row["batch"] == base_batch and row["rule"] == "none")
    best = max(rows, key=lambda rule: rows[rule])
    return {
        "batch": Number(most, "count"),
        "steps": Number(next(row["steps"] for row in result.table if row["batch"] == most), "count"),
        "base_batch": Number(base_batch, "count"),
        "base": Number(fmean(base["accuracy"]), "percent"),
        "same": Number(rows["none"], "percent"),
        "linear": Number(rows["linear"], "percent"),
        "linear_gain": Number(rows["linear"] - rows["none"], "points"),
        "best": Number(rows[best], "percent"),
        "rule": Words((f"large_batches.figure.rule.{best}",)),
    }


def _windows(result: Result) -> dict[str, Fact]:
    """On ragged windows: the loop that divides by K, as its table has it, and how many of the loops are right."""
    rows = [row for row in result.table if row["ragged"]]
    loop = next(row for row in rows if row["loop"] == "loop")["ragged"]
    right = sum(row["ragged"]["outcome"] == "right" for row in rows)
    return {
        "gain": Number(median(loop["gain"]), "number"),
        "error": Number(max(loop["relative_error"]), "percent"),
        "cosine": Number(min(loop["cosine"]), "number"),
        "draws": Number(len(loop["gain"]), "count"),
        "right": Number(right, "count"),
        "count": Number(len(rows), "count"),
    }


def _feedback(result: Result) -> dict[str, Fact]:
    """Sending one in a hundred (or fewer) with nothing kept, and the same with momentum correction, against dense."""
    rows = {row["method"]: row for row in result.table}
    return {
        "dense": Number(fmean(rows["dense"]["accuracy"]), "percent"),
        "plain": Number(fmean(rows["topk_01"]["accuracy"]), "percent"),
        "plain_factor": Number(fmean(rows["topk_01"]["compression_factor"]), "times"),
        "corrected": Number(fmean(rows["dgc_01"]["accuracy"]), "percent"),
        "corrected_factor": Number(fmean(rows["dgc_01"]["compression_factor"]), "times"),
        "seeds": Number(len(rows["dense"]["accuracy"]), "count"),
    }


def _stages(result: Result) -> dict[str, Fact]:
    """On the ranks of one machine: sending all, and encoding, sending and decoding the largest elements."""
    lanes = {lane["plan"]: lane for lane in result.figure["lanes"]}
    sparse = lanes["sparsify"]["seconds"]
    own = sum(sparse[stage] for stage in ("encode", "collective", "decode"))
    return {
        "dense": Number(lanes["dense"]["seconds"]["collective"], "seconds"),
        "own": Number(own, "seconds"),
        "ratio": Number(own / lanes["dense"]["seconds"]["collective"], "times"),
        "coding": Number(sparse["encode"] + sparse["decode"], "seconds"),
        "fewer": Number(lanes["dense"]["wire_bytes"] / lanes["sparsify"]["wire_bytes"], "times"),
    }


def _cured(result: Result) -> dict[str, Fact]:
    rows = [row for row in result.table if row["named"] is not None]
    return {
        "problems": Number(len(rows), "count"),
        "runs": Number(sum(len(row["before"]) for row in rows), "count"),
        "named": Number(sum(row["named"] for row in rows), "count"),
        "cured": Number(sum(row["cured"] for row in rows), "count"),
    }


def _case(name: str, pair: str) -> Measure:
    """All three techniques against none in a case."""

    def measure(runs: Runs) -> Finding | None:
        case = runs.case(name)
        found = cells.comparison(case, ALL) if case else None
        if case is None or found is None:
            return None
        share = cells.is_share(case)
        fewer = cells.ratio(case, "none", "wire_bytes", base=ALL)
        memory = cells.ratio(case, ALL, "peak_memory_bytes")
        facts: dict[str, Fact] = {
            "base": Number(cells.mean(case, "none", "value"), "percent" if share else "number"),
            "own": Number(cells.mean(case, ALL, "value"), "percent" if share else "number"),
            "difference": Number(found.difference, "points" if share else "signed", found.noise),
            "fewer": Number(fewer, "times") if fewer else "–",
            "memory": Number(memory, "factor") if memory else "–",
            "seeds": Number(case.seeds, "count"),
        }
        return Finding("", "open", facts, pair, cells.source(case, f"{name}/*/seed*/summary.json"))

    return measure


def of_case(name: str, pair: str, facts: Callable[[Case], dict[str, Fact] | None]) -> Measure:
    """Facts of a case's runs; None if they say nothing."""

    def measure(runs: Runs) -> Finding | None:
        case = runs.case(name)
        found = facts(case) if case else None
        if case is None or found is None:
            return None
        return Finding("", "open", found, pair, cells.source(case, f"{name}/*/seed*/summary.json"))

    return measure


def case_memory(case: Case) -> dict[str, Fact] | None:
    """The peak memory with accumulation alone and with compression alone, against none of the techniques."""
    found = [cells.ratio(case, name, "peak_memory_bytes") for name in ("accumulate", "compress")]
    if None in found:
        return None
    return {key: Number(one, "factor") for key, one in zip(("accumulated", "compressed"), found, strict=True) if one}


def case_clips(case: Case) -> dict[str, Fact] | None:
    """The share of steps that the bound alone clipped, and how many of these lie in the first quarter."""
    runs = [[step.get("clip_coef") for step in run.steps] for run in case.combinations.get("clip", {}).values()]
    clipped = [(place, len(run)) for run in runs for place, one in enumerate(run) if one is not None and one < 1]
    if not clipped:
        return None
    return {
        "clipped": Number(len(clipped) / sum(map(len, runs)), "percent"),
        "early": Number(fmean(4 * place < steps for place, steps in clipped), "percent"),
    }


MEASURED: dict[str, Measure] = {
    "turn": of_result("clip_geometry", _turn),
    "diverged": _judged("explode", "found.diverge"),
    "order": _judged("explode", "found.order"),
    "largest_norms": of_result("temporal_order", _largest_norms),
    "exact": _judged("large_batch", "found.exact"),
    "window_memory": _judged("memory", "found.window_memory"),
    "memory": of_result("accumulation_memory", _memory),
    "families": of_result("codec_gallery", _families),
    "links": _judged("efficiency", "found.links"),
    "slowest_link": _judged("compressed_convergence", "found.seconds"),
    "spikes": _judged("stable", "found.spikes"),
    "adaptive": _judged("stable", "found.adaptive"),
    "room": of_result("loss_spikes", _room),
    "clip_cost": of_result("clip_stages", _clip_cost),
    "batches": of_result("large_batches", _batches),
    "steps": _judged("convergence", "found.steps"),
    "samples": _judged("convergence", "found.samples"),
    "windows": of_result("window_states", _windows),
    "feedback": of_result("accuracy_vs_bytes", _feedback),
    "stages": of_result("encode_timeline", _stages),
    "combined_time": _judged("combined", "found.combined.time"),
    "cured": of_result("common_failures", _cured),
    "image": _case("image", "image_case"),
    "text": _case("text", "language_cases"),
    "translation": _case("translation", "language_cases"),
    "series": _case("series", "series_case"),
    "text_memory": of_case("text", "language_cases", case_memory),
    "translation_clips": of_case("translation", "language_cases", case_clips),
    **{name: study_facts.measure(name) for name in study_facts.STUDY},
    "combinations": table_facts.combinations,
    **{name: of_result(pair, facts) for name, (pair, facts) in table_facts.ROWS.items()},
}
