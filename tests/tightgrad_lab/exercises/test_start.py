"""What `start` writes for a student, and for a teacher."""

import pytest

from tightgrad_lab.cli import app as cli
from tightgrad_lab.exercises import sheets, start
from tightgrad_lab.report.book.chapters import read


def texts(folder):
    return {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_student_gets_tasks_starters_hints_and_no_solutions(language, tmp_path):
    start(tmp_path, language)
    found = texts(tmp_path)
    assert set(found) == {"README.md"} | {
        name for one in sheets() for name in (f"{one.name}.md", f"{one.name}.py", f"hints/{one.name}.md")
    }
    for one in sheets():
        whole = "".join(text for name, text in found.items() if name.endswith((f"{one.name}.py", f"{one.name}.md")))
        assert one.marking(language) not in whole
        assert one.solution(language).strip() not in whole
        assert str(one.number) in found[f"{one.name}.py"].splitlines()[0]
    assert ("练习" in found["01_clip_by_hand.py"]) == (language == "zh")


def test_the_teacher_gets_solutions_and_notes_as_well(tmp_path):
    start(tmp_path, "en", instructor=True)
    for one in sheets():
        assert one.solution("en") in (tmp_path / "instructor" / f"{one.name}.py").read_text(encoding="utf-8")
        notes = (tmp_path / "instructor" / f"{one.name}.md").read_text(encoding="utf-8")
        assert one.marking("en") in notes
        assert one.exam().slips[0].words.en in notes


def test_a_student_s_work_is_left_alone(tmp_path, capsys):
    assert cli.run(["exercises", "start", str(tmp_path)]) == 0
    mine = tmp_path / "03_clip_from_nothing.py"
    mine.write_text("my work", encoding="utf-8")
    assert cli.run(["exercises", "start", str(tmp_path)]) == 0
    assert mine.read_text(encoding="utf-8") == "my work"
    assert f"left as it is: {mine}" in capsys.readouterr().out


@pytest.mark.parametrize("language", ["en", "zh"])
def test_each_chapter_of_the_book_ends_with_its_exercises(language):
    for one in sheets():
        closing = read(language, f"chapter{one.chapter}").closing
        assert one.title(language) in closing.splitlines()[-2]
        assert f"tightgrad exercises check {one.number - (one.number - 1) % 3}`" in closing.splitlines()[-1]
