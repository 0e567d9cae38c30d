"""The board's rows are complete, say what their runs said, and make a table."""

import json
import shutil
from pathlib import Path

import pytest

from tightgrad_lab.audit.board import KEYS, load_board, run_board, table
from tightgrad_lab.cli import app as cli
from tightgrad_lab.errors import ArgumentError

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
    assert len({one["project"] for one in rows}) >= 8
    for one in rows:
        assert len(one["commit"]) == 40
        if one["ok"] is False:
            assert one["cause"]
            assert one["command"]
        if one["ok"] is None:
            assert one["note"]
    by_project = {(one["project"], one["ok"]) for one in rows}
    assert ("karpathy/nanoGPT", True) in by_project
    assert ("jingyaogong/minimind", False) in by_project
    assert ("datawhalechina/happy-llm", False) in by_project


def test_a_command_is_run_and_its_verdict_kept(tmp_path: Path) -> None:
    clone = tmp_path / "repos" / "project"
    clone.mkdir(parents=True)
    shutil.copy(SCRIPT, clone / "corpus.py")
    wrong = f"tightgrad audit --run corpus.py --ranks 1 --steps 4 -- {CORPUS / 'bug_not_divided.py'} equal 8"
    crashes = "tightgrad audit --run corpus.py --ranks 1 -- nothing.py equal 8"
    elsewhere = row(project="no/clone", ok=True, command="tightgrad audit --run train.py")
    folder = written(tmp_path / "board", row(command=wrong), row(command=crashes), elsewhere)
    seen: list[str] = []
    run_board(folder, tmp_path / "repos", seen.append)
    first, second, third = load_board(folder)
    assert seen == ["some/project corpus.py"] * 2
    assert first["ok"] is False
    assert first["mass"] == pytest.approx(4.0, rel=1e-3)
    assert "the loss is not divided by the number of micro-batches" in first["cause"]
    assert second["ok"] is None
    assert "nothing.py" in second["note"]
    assert third == elsewhere


def test_the_table_puts_faults_first_and_escapes_bars(tmp_path: Path) -> None:
    right, wrong = row(ok=True, note="a | b"), row(ok=False, cause="twice", weight_low=0.5, weight_high=2.0)
    lines = table([row(ok=None, note="no GPU"), right, wrong]).splitlines()
    assert "twice | 0.5 to 2" in lines[2]
    assert "right" in lines[3]
    assert "a / b" in lines[3]
    assert "could not run" in lines[4]


def test_what_is_no_board_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="there are no rows"):
        load_board(tmp_path)
    with pytest.raises(ArgumentError, match="lacks commit"):
        load_board(written(tmp_path, {key: "" for key in KEYS if key != "commit"}))


def test_the_command_draws_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    assert cli.run(["audit", "board"]) == 0
    assert "| karpathy/nanoGPT | `train.py`" in capsys.readouterr().out
