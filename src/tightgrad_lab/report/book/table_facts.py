"""The facts behind the tables in words: measured rows, named so that a sentence can hold them."""

from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

from tightgrad_lab.report import cells
from tightgrad_lab.report.claims.judgement import Fact, Finding, Number
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.results import Result

Row = Mapping[str, Any]
CODECS = {
    "Cast(bfloat16)": "bf16",
    "Cast(float16)": "fp16",
    "IntBlock(8)": "int8",
    "IntBlock(4)": "int4",
    "TopK(0.01)": "topk",
    "RandomK(0.01)": "random",
    "Threshold": "threshold",
    "StochasticPrune(0.001)": "prune",
    "Sign(1024)": "sign",
    "PowerSGD(4)": "low_rank",
    "QSGD(7)": "qsgd",
}
"""What the facts call a codec of the gallery; the settings of some depend on the gradient and are left out."""


Facts = dict[str, Fact]


def clip_methods(result: Result) -> Facts:
    """What each clipping method does to direction and mean, and the time that it takes next to torch's function."""
    facts = Facts()
    for row in result.table:
        name = row["method"]
        facts[f"{name}_cosine"] = Number(fmean(row["cosine"]), "number")
        facts[f"{name}_lowest"] = Number(min(row["cosine"]), "number")
        facts[f"{name}_bias"] = Number(row["bias"], "number")
        facts[f"{name}_time"] = Number(row["time_ratio_to_torch"], "times")
    return facts


def networks(result: Result) -> Facts:
    """How often each kind of network diverged, without clipping and with it, and its largest norm."""
    facts = Facts()
    for row in result.table:
        name = row["kind"]
        facts[f"{name}_runs"] = Number(row["runs"], "count")
        facts[f"{name}_diverged"] = Number(row["diverged"], "count")
        facts[f"{name}_with"] = Number(row["diverged_with"], "count")
        facts[f"{name}_norm"] = Number(row["largest_norm"], "number")
    return facts


def window_rows(result: Result) -> Facts:
    """From one micro-batch a window to the most: memory, time, bytes, and what dividing by K gets wrong."""
    rows = {row["micro_batches"]: row for row in result.table}
    first, last = rows[min(rows)], rows[max(rows)]
    return Facts(
        most=Number(max(rows), "count"),
        memory_first=Number(first["peak_memory_bytes"], "bytes"),
        memory_last=Number(last["peak_memory_bytes"], "bytes"),
        slower=Number(last["seconds_per_sample"] / first["seconds_per_sample"], "factor"),
        error=Number(max(max(row["relative_error"]) for row in result.table), "number"),
        loop_error=Number(max(last["relative_error_of_loop"]), "percent"),
        once=Number(last["wire_bytes"], "bytes"),
        each=Number(last["wire_bytes_if_each_synced"], "bytes"),
    )


def wrappers(result: Result) -> Facts:
    """Peak memory and traffic of a step by what wraps the model."""
    facts = Facts()
    for row in result.table:
        name = row["wrapper"].replace(" ", "_")
        facts[f"{name}_memory"] = Number(fmean(row["peak_memory_bytes"]), "bytes")
        facts[f"{name}_bytes"] = Number(row["wire_bytes"], "bytes")
    return facts


def codecs(result: Result) -> Facts:
    """Compression factor and relative error of each method on one real gradient."""
    facts = Facts()
    for row in result.table:
        if name := CODECS.get(row["codec"]) or CODECS.get(row["codec"].partition("(")[0]):
            facts[f"{name}_factor"] = Number(row["compression_factor"], "times")
            facts[f"{name}_error"] = Number(row["relative_error"], "number")
    return facts


def links(result: Result) -> Facts:
    """The slowest and the second slowest of the limited links, and the one without a limit."""
    limited = sorted((row for row in result.table if row["is_limited"]), key=lambda row: row["bits_per_second"])
    free = max(result.table, key=lambda row: row["bits_per_second"])
    facts = Facts()
    for name, row in (("slow", limited[0]), ("middle", limited[min(1, len(limited) - 1)]), ("free", free)):
        facts[f"{name}_rate"] = Number(row["bits_per_second"], "bits")
        facts[f"{name}_gain"] = Number(row["gain"], "factor")
        facts[f"{name}_best"] = str(row["best"])
        facts[f"{name}_dense"] = Number(row["dense_seconds"], "seconds")
        facts[f"{name}_seconds"] = Number(row["best_seconds"], "seconds")
    return facts


def spike_rows(result: Result) -> Facts:
    """Spikes, final loss and share of clipped steps of each clipping method in the small GPT, means over runs."""
    facts = Facts(runs=Number(len(result.table[0]["runs"]), "count"))
    for row in result.table:
        for key, unit in (("spikes", "number"), ("final_loss", "number"), ("clip_rate", "percent")):
            facts[f"{row['method']}_{key}"] = Number(fmean(run[key] for run in row["runs"]), unit)  # type: ignore[arg-type]
    return facts


def rate_rules(result: Result) -> Facts:
    """Accuracy of the largest batch by learning-rate rule, and that of the smallest batch."""
    most, base = max(row["batch"] for row in result.table), result.figure["base_batch"]
    facts = Facts(batch=Number(most, "count"), base_batch=Number(base, "count"))
    for row in result.table:
        if row["accuracy"] and row["batch"] == most:
            facts[row["rule"]] = Number(fmean(row["accuracy"]), "percent")
        elif row["accuracy"] and row["batch"] == base:
            facts[f"base_{row['rule']}"] = Number(fmean(row["accuracy"]), "percent")
    return facts


def trained(result: Result) -> Facts:
    """Accuracy and compression factor of each method by what it runs with, and the dense run's accuracy."""
    facts = Facts(seeds=Number(len(result.table[0]["accuracy"]), "count"))
    for row in result.table:
        if row["accuracy"]:
            name = row["method"] if row["method"] == "dense" else f"{row['method']}_{row['feedback']}"
            facts[name] = Number(fmean(row["accuracy"]), "percent")
            facts[f"{name}_factor"] = Number(fmean(row["compression_factor"]), "times")
    return facts


ROWS: dict[str, tuple[str, Callable[[Result], Facts]]] = {
    "clip_methods": ("clip_geometry", clip_methods),
    "networks": ("temporal_order", networks),
    "window_rows": ("window_timeline", window_rows),
    "wrappers": ("accumulation_memory", wrappers),
    "codecs": ("codec_gallery", codecs),
    "link_rows": ("link_speeds", links),
    "spike_rows": ("loss_spikes", spike_rows),
    "rate_rules": ("large_batches", rate_rules),
    "trained": ("accuracy_vs_bytes", trained),
}
"""The experiments whose rows the tables in words quote."""


def combinations(runs: Runs) -> Finding | None:
    """Each combination of the image case against none of the techniques."""
    case = runs.case("image")
    if case is None or "none" not in case.combinations:
        return None
    facts = Facts(seeds=Number(case.seeds, "count"))
    for name in case.combinations:
        key = name.replace("+", "_")
        found = cells.comparison(case, name)
        facts[f"{key}_value"] = Number(cells.mean(case, name, "value"), "percent")
        if found is None:
            continue
        facts[f"{key}_difference"] = Number(found.difference, "points", found.noise)
        for quantity, fact in (("wire_bytes", "bytes"), ("peak_memory_bytes", "memory"), ("step_seconds", "time")):
            ratio = cells.ratio(case, name, quantity)
            facts[f"{key}_{fact}"] = "–" if ratio is None else Number(ratio, "factor")
    return Finding("", "open", facts, "combinations", cells.source(case, "image/*/seed*/summary.json"))
