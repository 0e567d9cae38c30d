"""Sentences about what was measured follow from the values: other values, other words."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.drawing import write_result
from tightgrad_lab.report import faq
from tightgrad_lab.report.book import chapters
from tightgrad_lab.report.book.library import Library
from tightgrad_lab.report.book.predictions import FOLLOWS, Choice, alternatives, follow
from tightgrad_lab.report.claims.judgement import Number
from tightgrad_lab.report.errors import ReportError
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.texts import load

LANGUAGES = ("en", "zh")


def places(language: str) -> Iterator[tuple[str, str, str]]:
    """Of each place whose words follow from a fact: its file, the fact, and its ranges with their words."""
    for path in sorted((Path(chapters.__file__).parent / language).glob("*.md")):
        for fact, written in FOLLOWS.findall(path.read_text(encoding="utf-8")):
            yield path.stem, fact, written


def test_both_languages_follow_the_same_facts_at_the_same_bounds() -> None:
    one, other = ([(file, fact, [key for key, _ in alternatives(w)]) for file, fact, w in places(x)] for x in LANGUAGES)
    assert one == other
    assert len(one) >= 7


@pytest.mark.parametrize("language", LANGUAGES)
def test_whatever_is_measured_has_words_of_its_own(language: str) -> None:
    for file, fact, written in places(language):
        found = alternatives(written)
        ends = sorted(Choice(key, "", "").ends for key, _ in found)
        assert (ends[0][0], ends[-1][1]) == (float("-inf"), float("inf")), (file, fact)
        assert [high for _, high in ends[:-1]] == [low for low, _ in ends[1:]], (file, fact)
        assert len({said for _, said in found}) == len(found), (file, fact)


def test_a_place_takes_the_words_of_its_value_and_keeps_the_braces_inside() -> None:
    template = "{a ? ..1: less than {b} | 1..: more than {b}}, {b}"
    assert follow(template, {"a": Number(0.5, "number")}) == "less than {b}, {b}"
    assert follow(template, {"a": Number(1.0, "number")}) == "more than {b}, {b}"
    assert follow("{v ? short: worse | within: equal}", {"v": "within"}) == "equal"
    with pytest.raises(ReportError, match="has no words for"):
        follow("{v ? short: worse | within: equal}", {"v": "ahead"})


@pytest.mark.parametrize(("coding", "said"), [(0.03, "costs time"), (0.001, "saves time"), (0.005, "neither")])
def test_the_stages_on_one_machine_turn_with_the_values(tmp_path: Path, coding: float, said: str) -> None:
    """It once said that compression gains nothing, whatever was measured."""
    lanes = [
        {"plan": "dense", "seconds": {"collective": 0.015}, "wire_bytes": 1000},
        {"plan": "sparsify", "seconds": {"encode": coding, "collective": 0.005, "decode": coding}, "wire_bytes": 10},
    ]
    write_result(tmp_path, "encode_timeline", {}, {"lanes": lanes}, [])
    text = next(part for part in chapters.read("en", "chapter6").sections[1].source.split("\n\n") if "stages\n" in part)
    sentence = Library(Runs(tmp_path), load("en")).sentence("stages", text.split("\n", 1)[1])
    assert sentence is not None
    assert said in sentence


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 epochs, 11 epochs, 0.1 seeds", "1 epoch, 11 epochs, 0.1 seeds"),
        ('<data value="1">1</data> runs of 1 micro-batches', '<data value="1">1</data> run of 1 micro-batch'),
        ("1.00 spikes, −1 steps", "1.00 spikes, −1 steps"),
    ],
)
def test_one_is_in_the_singular(text: str, said: str) -> None:
    assert load("en").counted(text) == said
    assert load("zh").counted(text) == text


def test_no_page_shows_a_tag_of_its_headings(tmp_path: Path) -> None:
    """Replacing tags in Markup escapes what is put in their place."""
    for language in LANGUAGES:
        _, parts = Library(Runs(tmp_path), load(language)).page("summary")
        html = "".join(part.body for part in parts)
        assert "<h3>" in html
        assert not re.search("&lt;/?h", html)


@pytest.mark.parametrize(("outlier", "room"), [(6.0, "faq.max_norm.room"), (0.4, "faq.max_norm.no_room")])
def test_the_answer_on_bounds_and_the_chapter_turn_with_the_norms(tmp_path: Path, outlier: float, room: str) -> None:
    run = {"usual_norm": 0.5, "outlier_norm": outlier, "spikes": 1, "final_loss": 2.0, "clip_rate": 0.1}
    write_result(tmp_path, "loss_spikes", {}, {}, [{"method": "none", "runs": [run]}])
    found = faq._usual_norm(Runs(tmp_path))
    assert found is not None
    assert found.key == room
    text = next(part for part in chapters.read("en", "chapter4").sections[0].source.split("\n\n") if "room\n" in part)
    sentence = Library(Runs(tmp_path), load("en")).sentence("room", text.split("\n", 1)[1])
    assert sentence is not None
    assert ("no bound can act" in sentence) is (outlier < 0.5)
