"""`tightgrad bench headline`: real training over real links, and the figure from its JSON."""

import json
from dataclasses import replace

import pytest

from tightgrad_lab.bench import headline
from tightgrad_lab.cli import app as cli
from tightgrad_lab.network import why_not

REASON = why_not()


def curve(final: float) -> list[list[float]]:
    return [[100, 4.0], [200, final + 0.5], [400, final]]


def found() -> dict[str, object]:
    settings = headline.Settings(steps=400, seeds=3)
    curves = [
        {"plan": name, "seed": seed, "curve": curve(3.0 + 0.01 * seed + (0.005 if name == "compressed" else 0.0))}
        for name in headline.PLANS
        for seed in range(3)
    ]
    timings = [
        {"plan": "dense", "step_seconds": 8.0, "wire_bytes": 9e6, "training_seconds": 64.0},
        {"plan": "compressed", "step_seconds": 0.4, "wire_bytes": 3e5, "training_seconds": 160.0},
    ]
    summary = headline.summary(curves, timings, settings)
    return {"settings": {**vars(settings)}, "curves": curves, "timings": timings, "summary": summary}


def test_the_summary_compares_loss_with_noise_and_time_with_time() -> None:
    about = found()["summary"]
    assert about["difference_bits_per_byte"] == pytest.approx(0.005)
    assert about["two_standard_deviations_of_dense"] == pytest.approx(0.02)
    assert about["is_within_noise"]
    assert about["speedup"] == pytest.approx(400 * 8.0 / 160.0)
    assert about["compression_factor"] == pytest.approx(30.0)


def test_the_figure_is_drawn_from_the_json(tmp_path) -> None:
    source, out = tmp_path / "headline.json", tmp_path / "headline.svg"
    source.write_text(json.dumps(found()))
    assert cli.run(["bench", "headline", "--draw", str(source), "--out", str(out)]) == 0
    drawn = out.read_text()
    assert "compressed" in drawn
    assert "20.0" in drawn
    assert cli.run(["bench", "headline", "--draw", str(tmp_path / "none.json")]) == 2


@pytest.mark.slow
@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_a_few_steps() -> None:
    settings = replace(
        headline.Settings(), steps=6, seeds=2, ranks=2, dense_steps=3, width=96, layers=1, batch_size=2, evaluations=2
    )
    result = headline.run(settings)
    assert len(result["curves"]) == 4
    starts = {c["seed"]: c["curve"] for c in result["curves"] if c["plan"] == "dense"}
    assert starts[0] != starts[1]
    assert all(len(c["curve"]) == 2 for c in result["curves"])
    dense, compressed = headline.rows(result)
    assert compressed["wire_bytes"] < dense["wire_bytes"] / 5
    assert result["summary"]["dense_seconds"] == 6 * dense["step_seconds"]
