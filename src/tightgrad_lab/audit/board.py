"""The board: what `audit --run` says of public training scripts, each at a pinned commit.

Rows are kept as JSON, with the command that made them. None of the projects' code is: a run needs a folder of clones.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tightgrad_lab.errors import ArgumentError
from tightgrad_lab.training.ranks import ended_by_sigterm

Row = dict[str, Any]
VERDICT = ("ok", "cause", "weight_low", "weight_high", "mass", "note")
KEYS = ("project", "commit", "path", "lines", "command", "ranks", *VERDICT)
FAILED = 2


def load_board(folder: Path) -> list[Row]:
    """All rows below a folder, in the order of the files' names.

    Raises:
        ArgumentError: there are none, or a row lacks a key.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ArgumentError(f"there are no rows in {folder}; they are JSON files with a list `rows`.")
    rows: list[Row] = []
    for file in files:
        for row in json.loads(file.read_text(encoding="utf-8"))["rows"]:
            if missing := [key for key in KEYS if key not in row]:
                raise ArgumentError(f"{file}: the row of {row.get('project', '?')} lacks {', '.join(missing)}.")
            rows.append(row)
    return rows


def run_board(folder: Path, repos: Path, progress: Callable[[str], object]) -> list[Row]:
    """Run the command of every row in its clone below `repos`, and write what it says.

    Rows whose clone is not there stay as they were. A command is run in the folder of its script, or in the row's
    `folder`.
    """
    found: list[Row] = []
    for file in sorted(folder.glob("*.json")):
        board = json.loads(file.read_text(encoding="utf-8"))
        for row in board["rows"]:
            clone = repos / row["project"].rpartition("/")[2]
            here = clone / row.get("folder", Path(row["path"]).parent)
            if here.is_dir() and row["command"]:
                progress(f"{row['project']} {row['path']}")
                row.update(run_row(row["command"], here))
            found.append(row)
        file.write_text(json.dumps(board, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return found


def run_row(command: str, here: Path) -> Row:
    """Run one command of the form `tightgrad audit --run ...` in a folder; return what it says."""
    before, dashes, after = command.partition(" -- ")
    words = [*shlex.split(before)[1:], "--json", *(["--", *shlex.split(after)] if dashes else [])]
    with ended_by_sigterm():
        done = subprocess.run(
            [sys.executable, "-m", "tightgrad_lab.cli", *words], cwd=here, capture_output=True, text=True, check=False
        )
    if done.returncode >= FAILED:
        last = next(iter(reversed(done.stderr.strip().splitlines())), "it ended without a word")
        last = last.removeprefix("tightgrad: ").replace(f"{here.resolve()}/", "").partition("\x1b")[0]
        return {"ok": None, "cause": "", "weight_low": None, "weight_high": None, "mass": None, "note": last}
    return summary(json.loads(done.stdout))


def summary(printed: dict[str, Any]) -> Row:
    """A row of the board from what `audit --run --json` prints."""
    faults = [row for row in printed["rows"] if row["wrong"]]

    def extreme(key: str, choose: Callable[[Sequence[float]], float]) -> float | None:
        values = [row[key] for row in faults if row[key] is not None]
        return choose(values) if values else None

    return {
        "ok": printed["ok"],
        "cause": "; ".join(row["cause"] for row in faults),
        "weight_low": extreme("low", min),
        "weight_high": extreme("high", max),
        "mass": extreme("mass", lambda values: max(values, key=lambda one: abs(one - 1))),
    }


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table: what is wrong first, what could not run last."""
    order = {False: 0, True: 1, None: 2}
    lines = [
        "| Project | File | Commit | Ranks | Verdict | A target's weight | Note |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda one: order[one["ok"]]):
        verdict = {True: "right", False: row["cause"], None: "could not run"}[row["ok"]]
        low, high = row["weight_low"], row["weight_high"]
        weight = "" if low is None else f"{low:.3g} to {high:.3g}"
        cells = [row["project"], _file(row), row["commit"][:8], row["ranks"], verdict, weight, row["note"]]
        lines.append(f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def _file(row: Row) -> str:
    lines = f" {row['lines']}" if row["lines"] else ""
    return f"`{row['path']}`{lines}"
