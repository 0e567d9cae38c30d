"""Every exercise: the solution passes, the starter fails, and wrong answers are told what is wrong with them."""

import re
import sys
from pathlib import Path

import pytest

from tightgrad_lab.exercises import comm
from tightgrad_lab.exercises.catalogue import HERE, LANGUAGES, sheets

sys.path.insert(0, str(Path(__file__).parent))
from grading import said

SLOW = {14, 23, 24}
"""They start processes, or train."""
NUMBERED = [pytest.param(one, id=one.name, marks=[pytest.mark.slow] * (one.number in SLOW)) for one in sheets()]
WRONG = [
    pytest.param(one, wrong, id=f"{one.name}-{wrong.says}", marks=[pytest.mark.slow] * (one.number in SLOW))
    for one in sheets()
    for wrong in one.wrong()
]


@pytest.mark.parametrize("sheet", NUMBERED)
def test_the_solution_passes(sheet, tmp_path):
    for seed in range(3):
        assert said(sheet, sheet.solution("en"), tmp_path, seed) == []


@pytest.mark.parametrize("sheet", NUMBERED)
def test_the_starter_fails(sheet, tmp_path):
    assert said(sheet, sheet.starter("zh"), tmp_path)


@pytest.mark.parametrize(("sheet", "wrong"), WRONG)
def test_a_wrong_answer_is_named(sheet, wrong, tmp_path, monkeypatch):
    if wrong.says == "wait for each other":
        monkeypatch.setattr(comm, "SECONDS", 2.0)
    solution = sheet.solution("en")
    assert wrong.old in solution
    assert wrong.says in " | ".join(said(sheet, solution.replace(wrong.old, wrong.new), tmp_path))


@pytest.mark.parametrize("sheet", sheets(), ids=lambda one: one.name)
def test_files_are_complete_in_both_languages(sheet):
    assert len(sheet.wrong()) >= 5
    for language in LANGUAGES:
        assert all((sheet.title(language), sheet.hint(language), sheet.marking(language)))
        for source in (sheet.starter(language), sheet.solution(language)):
            compile(source, sheet.name, "exec")
            assert "[[" not in source or "||" not in source
            assert not re.search("# ?(en|zh) ", source)
    assert len(sheet.exam().slips) >= 2
    assert max(path.read_text(encoding="utf-8").count("\n") for path in sheet.folder.glob("*.*")) < 400


def test_numbers_are_those_of_the_course():
    assert [one.number for one in sheets()] == list(range(1, len(sheets()) + 1))
    assert {path.name[:4] for path in HERE.glob("ex*") if path.is_dir()} == {f"ex{one.number:02}" for one in sheets()}
