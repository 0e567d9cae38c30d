"""The advice for a link never names a method that loses accuracy in table 11."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from support.handbook import compressed, runs_with
from tightgrad_lab.report import faq
from tightgrad_lab.report.claims.link_advice import METHODS, by_link
from tightgrad_lab.report.claims.words import in_words
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.texts import load

DENSE = (0.85, 0.85, 0.86)
KEPT = {"int8": (0.85, 0.851, 0.859), "topk_01": (0.70, 0.71, 0.69)}


def points(rate: float, seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    return [
        {"ranks": 2, "bits_per_second": rate, "is_limited": True, "plan": plan, "step_seconds": value}
        for plan, value in seconds.items()
    ]


def runs(root: Path, links: Sequence[Mapping[str, float]], accuracy: Mapping[str, Sequence[float]]) -> Runs:
    found = [point for place, seconds in enumerate(links) for point in points(10.0 ** (7 + place), seconds)]
    rows = [compressed("dense", "none", DENSE, 1.0)]
    rows += [compressed(method, "error_feedback", values, 8.0) for method, values in accuracy.items()]
    return runs_with(root, link_speeds=({"points": found}, []), accuracy_vs_bytes=({"test_samples": 1000}, rows))


def names(finding: Any) -> tuple[str, ...]:
    return finding.facts["best"].keys


def test_the_fastest_method_that_keeps_the_accuracy_is_recommended(tmp_path: Path) -> None:
    steps = {"dense": 1.0, "8-bit blocks": 0.3, "topk 0.1 %": 0.05}
    found = by_link(runs(tmp_path / "runs", [steps], KEPT))
    assert [one.key for one in found] == ["faq.codec.use", "faq.codec.loses"]
    assert names(found[0]) == ("link_speeds.figure.int8",)
    assert found[0].facts["gain"].value == pytest.approx(1.0 / 0.3)
    assert found[1].facts["names"].keys == ("link_speeds.figure.topk_01",)
    assert found[1].pair == "accuracy_vs_bytes"
    assert "accuracy_vs_bytes" in str(found[1].source.patterns)


@pytest.mark.parametrize(
    ("steps", "accuracy", "keys"),
    [
        ({"dense": 1.0, "8-bit blocks": 0.9, "topk 0.1 %": 0.5}, KEPT, ["faq.codec.use", "faq.codec.loses"]),
        ({"dense": 1.0, "8-bit blocks": 0.99, "topk 0.1 %": 0.5}, KEPT, ["faq.codec.dont", "faq.codec.loses"]),
        ({"dense": 1.0, "8-bit blocks": 1.2, "topk 0.1 %": 0.97}, KEPT, ["faq.codec.dense"]),
        ({"dense": 1.0, "8-bit blocks": 0.3}, {}, ["faq.codec.unknown"]),
        ({"dense": 1.0, "8-bit blocks": 0.3, "sign": 0.1}, KEPT, ["faq.codec.use", "faq.codec.unmeasured"]),
        ({"dense": 1.0, "topk 0.1 %": 0.3}, KEPT, ["faq.codec.unknown"]),
        ({"8-bit blocks": 0.3}, KEPT, []),
    ],
)
def test_what_is_said(
    tmp_path: Path, steps: Mapping[str, float], accuracy: Mapping[str, Sequence[float]], keys: list[str]
) -> None:
    assert [one.key for one in by_link(runs(tmp_path / "runs", [steps], accuracy))] == keys


def test_a_method_that_diverged_is_not_recommended(tmp_path: Path) -> None:
    steps = {"dense": 1.0, "8-bit blocks": 0.3}
    rows = [compressed("dense", "none", DENSE, 1.0), compressed("int8", "error_feedback", (), 8.0, diverged=3)]
    both = runs_with(
        tmp_path / "runs",
        link_speeds=({"points": points(1e7, steps)}, []),
        accuracy_vs_bytes=({"test_samples": 1000}, rows),
    )
    assert [one.key for one in by_link(both)] == ["faq.codec.unknown"]


def test_a_method_that_loses_in_either_table_is_not_recommended(tmp_path: Path) -> None:
    """The page shows this machine's result and the published one of the full settings."""
    steps = {"dense": 1.0, "8-bit blocks": 0.3}
    own = runs(tmp_path / "runs", [steps], {"int8": (0.85, 0.851, 0.859)})
    runs(tmp_path / "runs" / "published", [steps], {"int8": (0.70, 0.71, 0.69)})
    assert [one.key for one in by_link(own)] == ["faq.codec.unknown"]


def test_every_link_gets_an_answer_in_order(tmp_path: Path) -> None:
    links = [{"dense": 1.0, "8-bit blocks": seconds} for seconds in (0.03, 0.2, 1.3)]
    found = faq.codec(runs(tmp_path / "runs", links, KEPT))
    assert [one.key for one in found] == ["faq.codec.use", "faq.codec.use", "faq.codec.dense"]
    assert [one.facts["rate"].value for one in found] == [1e7, 1e8, 1e9]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_sentences_name_methods_in_the_language_of_the_page(tmp_path: Path, language: str) -> None:
    texts = load(language)
    steps = {"dense": 1.0, "8-bit blocks": 0.3, "topk 0.1 %": 0.05}
    said = [str(in_words(one, texts)) for one in by_link(runs(tmp_path / "runs", [steps], KEPT))]
    assert texts("link_speeds.figure.int8") in said[0]
    assert texts("link_speeds.figure.topk_01") in said[1]


def test_every_method_of_the_link_bench_has_its_row() -> None:
    """Else a new plan of the bench would never be recommended, and nobody would notice."""
    from tightgrad_lab.experiments.accuracy_vs_bytes.methods import METHODS as TRAINED
    from tightgrad_lab.experiments.link_speeds import EXPERIMENT

    measured = set(EXPERIMENT.settings(full=False).plans) | set(EXPERIMENT.settings(full=True).plans)
    assert measured == set(METHODS)
    trained = [(method, feedback) for _, method, feedback in METHODS.values() if method is not None]
    assert all(feedback in TRAINED[method].feedbacks for method, feedback in trained)
