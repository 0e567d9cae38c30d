"""What clipping is said to do: no explosion, stable training, above all in deep and recurrent networks.

From `temporal_order` (the task of that name, and four kinds of network at high learning rates) and `loss_spikes` (a
small GPT with outliers in its data).
"""

from collections.abc import Callable, Iterable, Mapping
from statistics import fmean
from typing import Any

from tightgrad_lab.report.claims.judgement import Fact, Finding, Judgement, Number, Verdict, Words, judgement, of_share
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.results import Result, read_best
from tightgrad_lab.report.measured.stats import compare, fisher

EXPLOSION, SPIKES = "temporal_order", "loss_spikes"
RECURRENT = ("rnn", "lstm")
CERTAIN = 0.05
"""A difference of two shares counts if chance gives it in fewer cases than this."""
Row = Mapping[str, Any]


def explosion(runs: Runs) -> Judgement:
    """Clipping prevents explosion: runs that diverge without it and with it, and what the temporal order says."""
    result = read_best(runs.root, EXPLOSION)
    if result is None:
        return Judgement("open", (), (EXPLOSION,))
    return judgement([_diverged(result), temporal_order(result)], EXPLOSION)


def _diverged(result: Result) -> Finding | None:
    without, with_clip, count = (_sum(result.table, key) for key in ("diverged", "diverged_with", "runs"))
    if not without and not with_clip:
        return None
    chance = fisher(count - without, count, count - with_clip, count)
    certain = chance < CERTAIN
    verdict: Verdict = "refuted" if not certain else "supported" if with_clip == 0 else "mixed"
    facts: dict[str, Fact] = {
        "without": Number(without, "count"),
        "with_clip": Number(with_clip, "count"),
        "count": Number(count, "count"),
        "chance": Number(chance, "number"),
    }
    return Finding("found.diverge", verdict, facts, EXPLOSION, result.source)


def _sum(rows: Iterable[Row], key: str) -> int:
    return sum(int(row[key]) for row in rows)


def temporal_order(result: Result) -> Finding | None:
    """Lengths at which, with the best of the rates tried without clipping, more runs learn with it."""
    tried = list(result.figure["runs"])
    places = sorted({(run["kind"], run["length"]) for run in tried})
    learned = {(place, clipped): _best_learned(tried, place, clipped) for place in places for clipped in (False, True)}
    plain, plain_count = (sum(learned[place, False][i] for place in places) for i in (0, 1))
    clipped, clipped_count = (sum(learned[place, True][i] for place in places) for i in (0, 1))
    if not plain_count or not clipped_count:
        return None
    turned = [p for p in places if learned[p, False][0] == 0 and learned[p, True][0] == learned[p, True][1] > 0]
    chance = fisher(plain, plain_count, clipped, clipped_count)
    facts: dict[str, Fact] = {
        "plain": Number(plain, "count"),
        "plain_count": Number(plain_count, "count"),
        "clipped": Number(clipped, "count"),
        "clipped_count": Number(clipped_count, "count"),
        "turned": Number(len(turned), "count"),
        "places": Number(len(places), "count"),
        "chance": Number(chance, "number"),
    }
    return Finding("found.order", "supported" if chance < CERTAIN else "refuted", facts, EXPLOSION, result.source)


def _best_learned(tried: list[Row], place: tuple[str, int], clipped: bool) -> tuple[int, int]:
    """Of the rate at which most runs learned: how many, of how many."""
    own = [run for run in tried if (run["kind"], run["length"]) == place and run["clipped"] == clipped]
    by_rate = [[run for run in own if run["learning_rate"] == rate] for rate in {run["learning_rate"] for run in own}]
    return max(((sum(run["learned"] for run in runs), len(runs)) for runs in by_rate), default=(0, 0))


def recurrent(runs: Runs) -> Judgement:
    """Above all in recurrent networks: runs that clipping saves from diverging, there and in other networks."""
    result = read_best(runs.root, EXPLOSION)
    if result is None:
        return Judgement("open", (), (EXPLOSION,))
    return judgement([_saved(result)], EXPLOSION)


def _saved(result: Result) -> Finding | None:
    groups = [[row for row in result.table if (row["kind"] in RECURRENT) == wanted] for wanted in (True, False)]
    if not all(groups):
        return None
    saved = [max(0, _sum(rows, "diverged") - _sum(rows, "diverged_with")) for rows in groups]
    counts = [_sum(rows, "runs") for rows in groups]
    if not any(_sum(rows, "diverged") for rows in groups):
        return None
    chance = fisher(saved[1], counts[1], saved[0], counts[0])
    facts: dict[str, Fact] = {
        "own": Number(saved[0], "count"),
        "own_count": Number(counts[0], "count"),
        "other": Number(saved[1], "count"),
        "other_count": Number(counts[1], "count"),
        "chance": Number(chance, "number"),
    }
    return Finding("found.saved", "supported" if chance < CERTAIN else "refuted", facts, EXPLOSION, result.source)


def stable(runs: Runs) -> Judgement:
    """Clipping keeps training stable: loss spikes after outliers, and the loss in the end."""
    result = read_best(runs.root, SPIKES)
    if result is None:
        return Judgement("open", (), (SPIKES,))
    return judgement([_spikes(result), _others(result), _final_loss(result)], SPIKES)


def _by_seed(row: Row, key: str) -> dict[int, float]:
    """Fewer is better, so with the other sign."""
    return {seed: -float(run[key]) for seed, run in enumerate(row["runs"]) if run[key] is not None}


def _find(result: Result, method: str) -> Row | None:
    return next((row for row in result.table if row["method"] == method), None)


def _pair_of(result: Result, method: str, key: str) -> tuple[dict[int, float], dict[int, float]] | None:
    own, base = _find(result, method), _find(result, "none")
    if own is None or base is None:
        return None
    found = _by_seed(own, key), _by_seed(base, key)
    return found if found[0].keys() & found[1].keys() else None


def _spikes(result: Result) -> Finding | None:
    found = _pair_of(result, "global_norm", "spikes")
    if found is None:
        return None
    one = compare(*found, samples=None)
    facts: dict[str, Fact] = {
        "own": Number(-fmean(found[0].values()), "number"),
        "base": Number(-fmean(found[1].values()), "number"),
        "difference": Number(-one.difference, "signed", one.noise),
    }
    verdict: Verdict = "open" if one.noise is None else "supported" if one.verdict == "ahead" else "refuted"
    return Finding("found.spikes", verdict, facts, SPIKES, result.source)


def _others(result: Result) -> Finding | None:
    """The adaptive methods with fewer spikes than without clipping."""
    names = [row["method"] for row in result.table if row["method"] not in ("none", "clean", "global_norm")]
    compared = {name: _pair_of(result, name, "spikes") for name in names}
    verdicts = {name: compare(*found, samples=None).verdict for name, found in compared.items() if found}
    if not verdicts or "unknown" in verdicts.values():
        return None
    better = [name for name, verdict in verdicts.items() if verdict == "ahead"]
    facts: dict[str, Fact] = {
        "better": Number(len(better), "count"),
        "count": Number(len(verdicts), "count"),
        "names": Words(tuple(f"loss_spikes.figure.{name}" for name in better) or ("loss_spikes.figure.nobody",)),
    }
    return Finding("found.adaptive", of_share(len(better), len(verdicts)), facts, SPIKES, result.source)


def _final_loss(result: Result) -> Finding | None:
    """Of the global norm; it speaks for or against stability only where it differs by more than the noise."""
    found = _pair_of(result, "global_norm", "final_loss")
    if found is None:
        return None
    one = compare(*found, samples=None)
    facts: dict[str, Fact] = {
        "own": Number(-fmean(found[0].values()), "number"),
        "base": Number(-fmean(found[1].values()), "number"),
        "difference": Number(-one.difference, "signed", one.noise),
    }
    said: dict[str, Verdict] = {"ahead": "supported", "short": "refuted"}
    return Finding("found.final_loss", said.get(one.verdict, "open"), facts, SPIKES, result.source)


JUDGES: dict[str, Callable[[Runs], Judgement]] = {"explode": explosion, "recurrent": recurrent, "stable": stable}
