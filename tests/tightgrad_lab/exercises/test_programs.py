"""What keeps a program from being graded is said in words, with the line."""

import sys
from pathlib import Path

import pytest
import torch

from tightgrad_lab.exercises import check
from tightgrad_lab.exercises.catalogue import sheet, sheets
from tightgrad_lab.exercises.ex12_loss_scale.grader import Backward
from tightgrad_lab.exercises.model import copied

sys.path.insert(0, str(Path(__file__).parent))
from grading import said

ANSWER = "def answer(gradient, bound):\n    "
BROKEN = {
    "syntax": ("def answer(gradient bound):\n    return {}\n", "line 1 is not Python"),
    "indent": ("def answer(gradient, bound):\nreturn 1\n", "line 2 is not Python"),
    "unclosed": (ANSWER + "return {'norm': (1\n", "is not Python"),
    "null byte": ("x = 1\0\n", "not"),
    "raises on import": ("x = 1\ny = x / 0\n", "line 2 raises ZeroDivisionError"),
    "raises": (ANSWER + "return {'norm': gradient[99]}\n", "line 2 raises IndexError"),
    "exits": (ANSWER + "raise SystemExit(0)\n", "line 2 ends the program"),
    "exits on import": ("import sys\nsys.exit()\n", "line 2 ends the program"),
    "asks": (ANSWER + "return input()\n", "line 2 raises"),
    "only prints": ("print(10, 0.5)\n", "prints an answer and defines no `answer`"),
    "misspelt": ("def anwser(gradient, bound):\n    return 1\n", "is it `anwser`, on line 1?"),
    "empty": ("", "the file defines no `answer`"),
    "not a function": ("answer = 5\n", "must be a function and is int"),
    "parameters": ("def answer(gradient):\n    return 1\n", "raises TypeError"),
    "none": (ANSWER + "print(gradient)\n", "answer, line 1: it returns None"),
    "number": (ANSWER + "return 1.0\n", "should be dict and is float"),
    "text": (ANSWER + "return {'norm': '10'}\n", "norm: it should be float and is str"),
    "lacks": (ANSWER + "return {}\n", "lacks the entry 'norm'"),
    "nan": (ANSWER + "return {'norm': float('nan')}\n", "it is nan, expected"),
    "length": (ANSWER + "return {'by_norm': [1.0]}\n", "it should hold"),
    "mutates": (ANSWER + "gradient[0] = 0.0\n    return {}\n", "it changes its argument number 1"),
    "imports the grader": (
        "import tightgrad_lab.exercises.ex01_clip_by_hand.grader as g\nanswer = g.right\n",
        "line 1 imports",
    ),
    "asks for the grader by name": (
        "def answer(gradient, bound):\n    return getattr(gradient, 'tightgrad_lab.exercises')\n",
        "line 2 imports `tightgrad_lab.exercises`",
    ),
    "runs a text": (ANSWER + "return eval('1')\n", "line 2 uses `eval`"),
    "looks up the stack": ("import sys\n" + ANSWER + "return sys._getframe(1).f_locals\n", "line 3 uses `_getframe`"),
    "changes a library": ("import math\nmath.isclose = max\n", "line 2 changes `math.isclose`"),
    "changes what looks for changes": ("import ast\nast.walk = lambda tree: []\n", "line 2 changes `ast.walk`"),
    "calls the library": ("import tightgrad as tg\n", "line 1 uses `tightgrad`, which does the exercise for you"),
    "recursion": (ANSWER + "return answer(gradient, bound)\n", "line 2 raises RecursionError"),
}


@pytest.mark.parametrize(("source", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_program_is_told_why(source, words, tmp_path):
    assert words in " | ".join(said(sheet(1), source, tmp_path))


def test_a_constant_fails_for_every_seed(tmp_path):
    source = (
        ANSWER + "return {'norm': 10.0, 'factor': 0.5, 'by_norm': [3.0, 4.0], 'by_value': [5.0, 5.0], 'cosine': 0.99}\n"
    )
    for seed in range(5):
        assert "the same answer for every case" in " | ".join(said(sheet(1), source, tmp_path, seed))


def test_the_child_grades_and_repeats_a_seed(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        sheet(1)
        .solution("en")
        .replace("min(1.0, bound / norm)", "bound / norm")
        .replace("    norm", "    print('hello')\n    norm", 1)
    )
    first, second = check(1, path, seed=7), check(1, path, seed=7)
    assert first == second
    assert not first.passed
    assert "must never exceed 1" in first.remarks[0].en
    assert "系数不能超过 1" in first.remarks[0].zh
    assert first.printed.startswith("hello")


def test_an_endless_loop_is_stopped_at_its_line(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(ANSWER + "while True:\n        pass\n")
    (remark,) = check(1, path, seconds=1).remarks
    assert "did not end within 1 seconds" in remark.en
    assert "at line 2" in remark.en or "at line 3" in remark.en


def test_a_program_that_kills_itself_is_reported(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import os\nos._exit(3)\n")
    (remark,) = check(1, path).remarks
    assert "code 3" in remark.en


def test_a_verdict_of_its_own_does_not_count(tmp_path):
    path = tmp_path / "mine.py"
    verdict = '{"cases": 12, "remarks": [], "printed": "", "token": ""}'
    path.write_text(f"import os, sys\nopen('verdict.json', 'w').write({verdict!r})\nos._exit(0)\n")
    assert not check(1, path).passed


def test_what_lies_beside_the_file_is_the_students_too(tmp_path):
    (tmp_path / "helper.py").write_text(
        "import tightgrad_lab.exercises.ex01_clip_by_hand.grader as g\nanswer = g.right\n"
    )
    words = "imports `tightgrad_lab.exercises.ex01_clip_by_hand.grader`"
    sys.path.append(str(tmp_path))
    try:
        assert words in " | ".join(said(sheet(1), "from helper import answer\n", tmp_path))
    finally:
        sys.path.remove(str(tmp_path))


def test_a_yes_or_no_is_not_explained_by_a_mistake_made_nowhere_else(tmp_path):
    """Nearly every known mistake turns some of the answers round."""
    source = sheet(8).solution("en").replace("packed < dense", "packed > dense")
    assert said(sheet(8), source, tmp_path)[0].startswith("forecast, line 1: pays: found")


def test_wrong_signs_are_told_as_such(tmp_path):
    source = sheet(11).solution("en").replace("w - rate", "w + rate")
    assert "weights: every sign is wrong" in said(sheet(11), source, tmp_path)[0]


def test_a_thread_that_is_left_running_does_not_delay_the_verdict(tmp_path):
    path = tmp_path / "mine.py"
    forever = "import threading\nthreading.Thread(target=threading.Event().wait).start()\n"
    path.write_text(forever + sheet(1).solution("en"), encoding="utf-8")
    assert check(1, path).passed


def test_a_copy_of_a_case_may_be_changed_and_what_was_one_object_still_is():
    own, inside = torch.ones(2), torch.ones(3)
    case = (own, [(own, 3)], Backward(inside))
    first, ((second, count),), backward = copied(case)
    first.zero_()
    backward.exact.zero_()
    assert second is first
    assert count == 3
    assert own.tolist() == [1, 1]
    assert inside.tolist() == [1, 1, 1]


@pytest.mark.slow
def test_all_solutions_pass_as_a_student_would_check_them(tmp_path):
    for one in sheets():
        path = tmp_path / f"{one.name}.py"
        path.write_text(one.solution("zh"), encoding="utf-8")
        verdict = check(one.number, path)
        assert verdict.passed, f"exercise {one.number}, seed {verdict.seed}: {verdict.remarks}"
