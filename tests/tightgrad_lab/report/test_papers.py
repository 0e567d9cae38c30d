"""References: every paper that a card names is known, and the page says which methods come from it."""

import json
from pathlib import Path

import pytest

from tightgrad.plan.registry import cards
from tightgrad_lab.experiments.handout import write_handout
from tightgrad_lab.report import ReportError
from tightgrad_lab.report.papers import (
    ARXIV,
    course_papers,
    known,
    method_papers,
    read_cards,
    users_of_course,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("runs")
    write_handout(found)
    return found


def test_every_paper_of_a_card_has_its_title() -> None:
    named = {number for card in cards() for number in ARXIV.findall(card.reference)}
    assert len(named) > 20
    urls = {item["url"].rpartition("/")[2] for group in known().values() for item in group}
    assert named - urls == set()


def test_the_papers_name_their_methods(root: Path) -> None:
    found = {paper.url: paper for paper in method_papers(read_cards(root))}
    assert "powersgd" in found["https://arxiv.org/abs/1905.13727"].methods
    assert all(paper.title and (paper.methods or paper.pairs) for paper in found.values())
    assert [paper.year for paper in found.values()] == sorted(paper.year for paper in found.values())


def test_papers_of_the_course_are_not_listed_twice(root: Path) -> None:
    found = read_cards(root)
    course = {paper.url for paper in course_papers()}
    assert len(course) == 12
    assert not course & {paper.url for paper in method_papers(found)}
    dgc = next(paper for paper in course_papers() if paper.role == "dgc")
    assert "momentum_correction" in users_of_course(found, dgc)


def test_an_unknown_paper_is_shown_as_its_card_names_it() -> None:
    card = {"id": "new", "reference": "Turing and Hopper 2031, arXiv:3101.00001; Seide et al. 2014"}
    paper = next(one for one in method_papers([card]) if one.methods)
    assert (paper.authors, paper.year) == ("Turing and Hopper", 2031)
    assert paper.url == "https://arxiv.org/abs/3101.00001"


def test_a_damaged_file_of_cards_is_named(tmp_path: Path) -> None:
    (tmp_path / "methods.json").write_text(json.dumps({"methods": [{"id": "x"}]}))
    with pytest.raises(ReportError, match=r"methods\.json"):
        read_cards(tmp_path)
