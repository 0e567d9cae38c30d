"""Verdicts on clipping turn with the rows."""

from pathlib import Path
from typing import Any

import pytest

from support.handbook import runs_with
from tightgrad_lab.report.claims import clipping
from tightgrad_lab.report.measured.stats import fisher

KINDS = ("rnn", "lstm", "transformer", "cnn")


def network(kind: str, diverged: int, diverged_with: int, count: int = 10) -> dict[str, Any]:
    return {"kind": kind, "runs": count, "diverged": diverged, "diverged_with": diverged_with}


def order(without: int, with_clip: int, seeds: int = 5) -> list[dict[str, Any]]:
    """Runs of one length: at two rates without clipping, of which one learns nothing, and at one with it."""
    return [
        {"kind": "rnn", "length": 30, "clipped": clipped, "learning_rate": rate, "learned": seed < learned}
        for clipped, rate, learned in ((False, 0.1, 0), (False, 0.01, without), (True, 0.1, with_clip))
        for seed in range(seeds)
    ]


def judge(root: Path, claim: str, table: list[dict[str, Any]], tried: list[dict[str, Any]]) -> Any:
    return clipping.JUDGES[claim](runs_with(root / "runs", temporal_order=({"runs": tried}, table)))


@pytest.mark.parametrize(
    ("diverged", "learned", "verdict"),
    [
        ((6, 0), (0, 5), "supported"),
        ((6, 1), (0, 5), "mixed"),
        ((6, 0), (4, 5), "mixed"),
        ((1, 1), (5, 5), "refuted"),
        ((0, 6), (5, 0), "refuted"),
    ],
)
def test_explosion(tmp_path: Path, diverged: tuple[int, int], learned: tuple[int, int], verdict: str) -> None:
    found = judge(tmp_path, "explode", [network(kind, *diverged) for kind in KINDS], order(*learned))
    assert found.verdict == verdict
    assert found.findings[0].facts["without"].value == 4 * diverged[0]


def test_nothing_diverged_says_nothing_about_divergence(tmp_path: Path) -> None:
    found = judge(tmp_path, "explode", [network(kind, 0, 0) for kind in KINDS], order(0, 5))
    assert [one.key for one in found.findings] == ["found.order"]
    assert found.findings[0].facts["turned"].value == 1


@pytest.mark.parametrize(
    ("own", "other", "verdict"), [(8, 1, "supported"), (4, 4, "refuted"), (1, 8, "refuted"), (0, 0, "open")]
)
def test_above_all_in_recurrent_networks(tmp_path: Path, own: int, other: int, verdict: str) -> None:
    table = [network(kind, own if kind in clipping.RECURRENT else other, 0) for kind in KINDS]
    assert judge(tmp_path, "recurrent", table, order(0, 5)).verdict == verdict


def gpt(spikes: dict[str, list[int]], losses: dict[str, list[float]] | None = None) -> list[dict[str, Any]]:
    return [
        {
            "method": method,
            "runs": [
                {"spikes": count, "final_loss": (losses or {}).get(method, [2.5, 2.51, 2.49])[seed]}
                for seed, count in enumerate(counts)
            ],
        }
        for method, counts in spikes.items()
    ]


@pytest.mark.parametrize(
    ("own", "adaptive", "loss", "verdict"),
    [
        ([1, 1, 2], [0, 1, 1], [2.5, 2.51, 2.49], "supported"),
        ([1, 1, 2], [6, 5, 7], [2.5, 2.51, 2.49], "mixed"),
        ([6, 5, 7], [6, 5, 7], [2.5, 2.51, 2.49], "refuted"),
        ([1, 1, 2], [0, 1, 1], [3.0, 3.01, 2.99], "mixed"),
    ],
)
def test_stability(tmp_path: Path, own: list[int], adaptive: list[int], loss: list[float], verdict: str) -> None:
    table = gpt({"none": [6, 6, 7], "global_norm": own, "zclip": adaptive}, {"global_norm": loss})
    found = clipping.stable(runs_with(tmp_path / "runs", loss_spikes=({}, table)))
    assert found.verdict == verdict
    difference = found.findings[0].facts["difference"]
    assert difference.value == pytest.approx(sum(own) / 3 - 19 / 3)
    assert difference.noise is not None


def test_one_seed_gives_no_verdict_on_spikes(tmp_path: Path) -> None:
    table = gpt({"none": [6], "global_norm": [0]})
    assert clipping.stable(runs_with(tmp_path / "runs", loss_spikes=({}, table))).verdict == "open"


def test_fisher_is_that_of_the_lady_tasting_tea() -> None:
    assert fisher(1, 4, 3, 4) == pytest.approx(17 / 70)
    assert fisher(0, 4, 4, 4) == pytest.approx(1 / 70)
    assert fisher(2, 4, 2, 4) > 0.5


def test_without_a_run_everything_is_open(tmp_path: Path) -> None:
    for name, judge_one in clipping.JUDGES.items():
        found = judge_one(runs_with(tmp_path / "runs"))
        assert (found.verdict, found.findings) == ("open", ()), name
        assert found.needs, name
