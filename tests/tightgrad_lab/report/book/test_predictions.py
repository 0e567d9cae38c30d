"""Predict, then look: 24 questions whose right choice is the one that was measured, whichever it is."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from support.drawing import write_result
from tightgrad_lab.report.book import library, prediction_facts, predictions
from tightgrad_lab.report.book.library import Library
from tightgrad_lab.report.book.prediction_facts import PREDICTED
from tightgrad_lab.report.book.predictions import PICK, Choice, Prediction, read_predictions
from tightgrad_lab.report.claims.judgement import Finding, Number
from tightgrad_lab.report.course import COURSE
from tightgrad_lab.report.errors import ReportError
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.model import Source
from tightgrad_lab.report.texts import load

LANGUAGES = ("en", "zh")
ALL = tuple(PREDICTED)
NAMED = {
    ("large_batches", "table"): {"none", "linear", "sqrt", "layerwise"},
    ("image_case", "table"): {"short", "within", "ahead"},
    ("series_case", "table"): {"better", "worse"},
}
WAYS = {"norm": {"cosine": 1}, "value": {"cosine": 0.7, "changed": 0.1}}


def inside(choice: Choice) -> Number | str:
    """A measurement that makes a choice right."""
    if ".." not in choice.key:
        return choice.key
    low, high = choice.ends
    if low == float("-inf"):
        return Number(high - 0.01, "number")
    return Number(low, "number")


def test_three_for_each_chapter_in_both_languages() -> None:
    chapter = {pair: section.chapter for sections in COURSE for section in sections for pair in section.pairs}
    assert Counter(chapter[pair] for pair, _ in PREDICTED) == dict.fromkeys(range(1, 9), 3)
    for language in LANGUAGES:
        assert read_predictions(language).keys() == PREDICTED.keys()


@pytest.mark.parametrize("name", ALL)
def test_both_languages_ask_the_same(name: tuple[str, str]) -> None:
    one, other = (read_predictions(language)[name] for language in LANGUAGES)
    assert [(choice.key, not choice.why) for choice in one.choices] == [
        (choice.key, not choice.why) for choice in other.choices
    ]
    braces = [set(re.findall(r"\{(\w+)\}", " ".join((two.measured, two.because)))) for two in (one, other)]
    assert braces[0] == braces[1]
    assert PICK in braces[0] or name in NAMED


@pytest.mark.parametrize("name", ALL)
def test_whatever_is_measured_exactly_one_choice_is_right(name: tuple[str, str]) -> None:
    choices = read_predictions("en")[name].choices
    if name in NAMED:
        assert {choice.key for choice in choices} == NAMED[name]
        return
    ends = sorted(choice.ends for choice in choices)
    assert ends[0][0] == float("-inf")
    assert ends[-1][1] == float("inf")
    assert [high for _, high in ends[:-1]] == [low for low, _ in ends[1:]]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", ALL)
def test_the_words_follow_the_value(
    name: tuple[str, str], language: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = load(language)
    question = read_predictions(language)[name]
    for measured in question.choices:
        facts: dict[str, Any] = dict.fromkeys(re.findall(r"\{(\w+)\}", repr(question)), "fact")
        finding = Finding("", "open", facts | {PICK: inside(measured)}, name[0], Source(("there",), 1, "command"))
        monkeypatch.setitem(library.PREDICTED, name, lambda runs, found=finding: found)
        asked = Library(Runs(tmp_path), texts).asked(*name)
        assert asked is not None
        assert [right for _, _, right, _ in asked.choices] == [choice is measured for choice in question.choices]
        for choice, (_, _, _, said) in zip(question.choices, asked.choices, strict=True):
            if choice is measured:
                assert said == texts("predict.right")
            elif not choice.why:
                assert said == texts("predict.expected")
            else:
                assert said.striptags()[:12] == choice.why[:12]
        because = re.sub(r"[^\w]", "", question.because)[:20]
        assert (because in re.sub(r"[^\w]", "", asked.answer.striptags())) is (not measured.why)


@pytest.mark.parametrize("name", ALL)
def test_without_a_result_there_is_no_question(name: tuple[str, str], tmp_path: Path) -> None:
    assert PREDICTED[name](Runs(tmp_path)) is None
    assert Library(Runs(tmp_path), load("zh")).asked(*name) is None


@pytest.mark.parametrize(
    ("pair", "place", "figure", "table", "picked"),
    [
        (
            "clip_geometry",
            "figure",
            {"ways": {"norm": {"cosine": 1}, "value": {"cosine": 0.7, "changed": 0.1}}},
            [],
            0.7,
        ),
        ("clip_geometry", "table", {}, [{"method": "value", "bias": 4}, {"method": "global_norm", "bias": 2}], 2.0),
        (
            "temporal_order",
            "figure",
            {"backward": [{"kind": "rnn", "gain": g, "length": 50, "norms": [0.1, 0.1 * g]} for g in (0.9, 1.5)]},
            [],
            1.5,
        ),
        (
            "window_timeline",
            "figure",
            {"events": [{"kind": "forward", "weight": w} for w in (10, 40)] + [{"kind": "step", "weight": None}]},
            [],
            4.0,
        ),
        ("window_timeline", "table", {}, [{"micro_batches": k, "peak_memory_bytes": 8 / k} for k in (1, 4)], 0.25),
        (
            "accumulation_memory",
            "figure",
            {"points": [{"micro_batch": b, "step_seconds": 1 / b} for b in (1, 2, 32)]},
            [],
            32.0,
        ),
        (
            "loss_spikes",
            "table",
            {},
            [{"method": m, "runs": [{"clip_rate": rate}]} for m, rate in (("autoclip", 0.8), ("zclip", 0.1))],
            0.8,
        ),
        (
            "encode_timeline",
            "figure",
            {
                "lanes": [
                    {"plan": "dense", "seconds": {"collective": 2.0}, "wire_bytes": 8},
                    {"plan": "sparsify", "seconds": {"encode": 3, "collective": 1, "decode": 2}, "wire_bytes": 1},
                ]
            },
            [],
            3.0,
        ),
        (
            "common_failures",
            "figure",
            {
                "panels": [
                    {
                        "problem": "over_clipping",
                        "runs": [{"before": {"values": [2.0, 1.0]}, "after": {"values": [2.0, 0.5]}}],
                    }
                ]
            },
            [],
            0.5,
        ),
    ],
)
def test_what_decides_is_read_from_the_result(
    pair: str, place: str, figure: dict[str, Any], table: list[Any], picked: float, tmp_path: Path
) -> None:
    root = write_result(tmp_path, pair, {}, figure, table)
    finding = PREDICTED[pair, place](Runs(root))
    assert finding is not None
    pick = finding.facts[PICK]
    assert isinstance(pick, Number)
    assert pick.value == pytest.approx(picked)
    said = " ".join(repr(read_predictions(language)[pair, place]) for language in LANGUAGES)
    assert set(re.findall(r"\{(\w+)\}", said)) <= finding.facts.keys()


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ({"none": 0.7, "linear": 0.6, "lamb": 0.8}, "layerwise"),
        ({"none": 0.7, "linear": 0.6, "linear_gradual": 0.9}, "linear"),
        ({"none": 0.7, "linear": 0.6}, "none"),
    ],
)
def test_the_best_rule_is_found(rows: dict[str, float], kind: str, tmp_path: Path) -> None:
    table = [{"batch": 512, "rule": rule, "accuracy": [value]} for rule, value in rows.items()]
    root = write_result(tmp_path, "large_batches", {}, {}, table)
    found = PREDICTED["large_batches", "table"](Runs(root))
    assert found is not None
    assert found.facts[PICK] == kind


def test_where_a_run_diverged_nothing_is_asked(tmp_path: Path) -> None:
    table = [
        {"batch": 512, "rule": "none", "accuracy": [0.5], "steps": 9},
        {"batch": 512, "rule": "linear", "accuracy": []},
    ]
    root = write_result(tmp_path, "large_batches", {}, {"base_batch": 32}, table)
    for place in ("figure", "table"):
        assert PREDICTED["large_batches", place](Runs(root)) is None
    verdict = Library(Runs(root), load("en")).asked("large_batches", "table")
    assert verdict is None


def test_the_figure_s_own_result_comes_before_the_published_one(tmp_path: Path) -> None:
    """The text quotes the published full run; the figure, and so the question, is about this machine's."""
    write_result(tmp_path / "published", "clip_geometry", {}, {"ways": WAYS}, [])
    found = prediction_facts.read_shown(tmp_path, "clip_geometry")
    assert found is not None
    assert found.path.parents[1].name == "published"
    write_result(tmp_path, "clip_geometry", {}, {"ways": WAYS}, [])
    found = prediction_facts.read_shown(tmp_path, "clip_geometry")
    assert found is not None
    assert found.path.parents[1] == tmp_path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("## clip_geometry picture\n", "names no place"),
        ("## clip_geometry figure\nWhy?\n\n- ..1: a | b\n- 1..: c | d\n\n> {pick}\n> so\n", "one has a star"),
        ("## clip_geometry figure\nWhy?\n\n- ..1*: a\n- 1..: c\n\n> {pick}\n> so\n", "a reason"),
        ("## clip_geometry figure\nWhy?\n\n- ..1*: a\n- 1..: c | d\n\n> {pick}\n", "two lines"),
    ],
)
def test_a_question_that_lacks_a_part_is_refused(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "en").mkdir()
    (tmp_path / "en" / "predictions.md").write_text(text, encoding="utf-8")
    monkeypatch.setattr(predictions, "HERE", tmp_path)
    with pytest.raises(ReportError, match=message):
        read_predictions.__wrapped__("en")


def test_a_number_needs_ranges() -> None:
    with pytest.raises(ReportError, match="no range"):
        Prediction("", (Choice("better", "", ""),), "", "").right(Number(1.0, "number"))
