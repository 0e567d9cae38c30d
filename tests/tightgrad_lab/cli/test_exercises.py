"""`tightgrad exercises` in both languages, and its wrong arguments."""

import pytest

from tightgrad_lab.cli import app as cli
from tightgrad_lab.exercises import sheet, sheets


@pytest.mark.parametrize(("language", "words"), [("en", "find the bug"), ("zh", "找错")])
def test_list_names_every_exercise(language, words, capsys):
    assert cli.run(["exercises", "list", "--lang", language]) == 0
    out = capsys.readouterr().out
    assert words in out
    assert all(one.title(language) in out for one in sheets())


def test_check_takes_the_exercise_s_own_file_and_language(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "01_clip_by_hand.py").write_text("# 练习 1\n" + sheet(1).solution("zh"), encoding="utf-8")
    assert cli.run(["exercises", "check", "1"]) == 0
    assert "12 组数全部正确" in capsys.readouterr().out
    (tmp_path / "01_clip_by_hand.py").write_text("# Exercise 1\nprint(5)\n", encoding="utf-8")
    assert cli.run(["exercises", "check", "1", "--seed", "4"]) == 1
    out = capsys.readouterr().out
    assert "defines no `answer`" in out
    assert "--seed 4" in out


@pytest.mark.parametrize(
    ("arguments", "instead"),
    [
        (["check", "99"], "choose 1 to 24"),
        (["check", "1", "nowhere.py"], "tightgrad exercises start DIR"),
        (["check", "one"], "tightgrad exercises check --help"),
        (["list", "--lang", "fr"], "use zh or en"),
        (["start"], "tightgrad exercises start --help"),
        (["strat"], "choose from: list, start, check"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, instead, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["exercises", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert instead in err
