"""The board's rows are complete, say what their runs said, and make a table."""

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tightgrad_lab.audit.board import KEYS, KINDS, load_board, page, run_board, short_table, table
from tightgrad_lab.cli import app as cli
from tightgrad_lab.errors import ArgumentError
from tightgrad_lab.report.book.chapters import read

ROOT = Path(__file__).parents[3]
STORED = ROOT / "benchmarks" / "results" / "board"
CORPUS = ROOT / "examples" / "audit"
SCRIPT = Path(__file__).parent / "script" / "corpus.py"


def row(**more: object) -> dict[str, object]:
    found: dict[str, object] = dict.fromkeys(KEYS)
    found |= {"project": "some/project", "commit": "0123456789", "path": "corpus.py", "lines": "", "ranks": "1"}
    return found | {"cause": "", "note": "", "command": ""} | more


def written(folder: Path, *rows: dict[str, object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    return folder


def test_stored_rows_are_complete_and_fair() -> None:
    rows = load_board(STORED)
    assert len({one["project"] for one in rows}) >= 25
    assert len({one["project"] for one in rows if one["ok"] is not None}) >= 20
    for one in rows:
        assert len(one["commit"]) == 40
        assert "/work" not in json.dumps(one)
        if one["ok"] is False:
            assert one["cause"]
            assert one["command"]
            assert one["lines"]
            assert one["kinds"]
            assert set(one["kinds"]) <= set(KINDS)
        if one["ok"] is None:
            assert one["note"]
    by_project = {(one["project"], one["ok"]) for one in rows}
    assert ("karpathy/nanoGPT", True) in by_project
    assert ("jingyaogong/minimind", False) in by_project
    assert ("datawhalechina/happy-llm", False) in by_project


def command_here(command: list[str], *, cwd: Path, **_: object) -> subprocess.CompletedProcess[str]:
    """In this process, without what it takes to start Python and import torch."""
    assert command[:3] == [sys.executable, "-m", "tightgrad_lab.cli"]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run(command[3:])
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


@pytest.mark.parametrize("here", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_command_is_run_and_its_verdict_kept(here: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if here:
        monkeypatch.setattr("tightgrad_lab.audit.board.subprocess", SimpleNamespace(run=command_here))
    clone = tmp_path / "repos" / "project"
    clone.mkdir(parents=True)
    shutil.copy(SCRIPT, clone / "corpus.py")
    wrong = f"tightgrad audit --run corpus.py --ranks 1 --steps 4 -- {CORPUS / 'bug_not_divided.py'} equal 8"
    crashes = "tightgrad audit --run corpus.py --ranks 1 -- nothing.py equal 8"
    elsewhere = row(project="no/clone", ok=True, command="tightgrad audit --run train.py")
    other_versions = row(command=wrong, needs=["pytest==0.0.1"])
    folder = written(tmp_path / "board", row(command=wrong), row(command=crashes), elsewhere, other_versions)
    seen: list[str] = []
    run_board(folder, tmp_path / "repos", seen.append)
    first, second, third, fourth = load_board(folder)
    assert seen == ["some/project corpus.py"] * 2
    assert first["ok"] is False
    assert first["mass"] == pytest.approx(4.0, rel=1e-3)
    assert "the loss is not divided by the number of micro-batches" in first["cause"]
    assert second["ok"] is None
    assert "nothing.py" in second["note"]
    assert first["kinds"] == ["mass"]
    assert (third, fourth) == (elsewhere, other_versions)


def test_the_table_puts_faults_first_and_escapes_bars(tmp_path: Path) -> None:
    right, wrong = row(ok=True, note="a | b"), row(ok=False, cause="twice", weight_low=0.5, weight_high=2.0)
    lines = table([row(ok=None, note="no GPU"), right, wrong]).splitlines()
    assert "twice | 0.5 to 2" in lines[2]
    assert "right" in lines[3]
    assert "a / b" in lines[3]
    assert "could not run" in lines[4]


def test_the_docs_page_is_made_from_the_rows(tmp_path: Path) -> None:
    wrong = row(
        ok=False, cause="half of its mass", kinds=["short window"], mass=0.5, command="tightgrad audit --run a.py"
    )
    found = page(written(tmp_path, wrong, row(ok=True, project="other/one"), row(ok=None, note="needs a GPU")))
    assert "made 2 runs of public training scripts from 2 projects" in found
    assert "1 show nothing wrong; in 1, targets" in found
    assert "| half of its mass |" in found
    assert "# some/project, 01234567\ntightgrad audit --run a.py" in found


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_book_shows_the_stored_rows(language: str) -> None:
    rows = load_board(STORED)
    chapter = "\n".join(one.source for one in read(language, "chapter5").sections)
    assert short_table(rows, language) in chapter
    verdicts = [one["ok"] for one in rows]
    ran = {one["project"] for one in rows if one["ok"] is not None}
    counts = [len(verdicts) - verdicts.count(None), len(ran), verdicts.count(True), verdicts.count(False)]
    said = re.search(r"`tightgrad audit --run`.*", chapter)
    assert said is not None
    assert [int(number) for number in re.findall(r"\d+", said[0])] == counts


def test_what_is_no_board_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="there are no rows"):
        load_board(tmp_path)
    with pytest.raises(ArgumentError, match="lacks commit"):
        load_board(written(tmp_path, {key: "" for key in KEYS if key != "commit"}))


def test_the_command_draws_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    assert cli.run(["audit", "board"]) == 0
    assert "| karpathy/nanoGPT | `train.py`" in capsys.readouterr().out
