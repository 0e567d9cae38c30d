"""The board: what `audit --run` says of public training scripts, each at a pinned commit.

Rows are kept as JSON, with the command that made them. None of the projects' code is: a run needs a folder of clones,
and the data that `benchmarks/board_data.py` makes there.
"""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from tightgrad_lab.errors import ArgumentError
from tightgrad_lab.signals import ended_by_signals

Row = dict[str, Any]
VERDICT = ("ok", "cause", "weight_low", "weight_high", "mass", "note")
KEYS = ("project", "commit", "path", "lines", "command", "ranks", *VERDICT)
FAILED = 2
ORDER = {False: 0, True: 1, None: 2}
"""What is wrong first, what could not run last."""
KINDS = {
    "all masked": ("a micro-batch without targets", "有微批次没有目标"),
    "clip in mid-window": ("clips inside the window", "在窗口中间裁剪"),
    "ignored targets count": ("ignored targets in the denominator", "被忽略的目标算入分母"),
    "leak": ("left-over micro-batches leak into the next window", "剩余微批次漏入下一窗口"),
    "mean of micro-batch means": ("mean of micro-batch means", "微批次均值的均值"),
    "mean of rank means": ("mean of rank means", "各进程均值的均值"),
    "short window": ("short window divided by the full K", "短窗口仍除以完整的 K"),
}
"""Kind of a fault -> its short name in English and Chinese."""
NOT_SEEN = "nothing found; its loss is not seen"
HEAD = {
    "en": ("Project", "Script", "Verdict", "A target's weight", "A window's mass"),
    "zh": ("项目", "脚本", "结论", "单个目标的权重", "窗口的总权重"),
}
WORDS = {
    "en": ("right", NOT_SEEN, "could not run here", "to"),
    "zh": ("正确", "未发现问题；看不到其损失", "此处无法运行", "至"),
}


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

    Rows whose clone is not there stay as they were, and so do those that need other versions of packages than are
    installed (`needs`: a list like "timm==0.4.12"). A command is run in the folder of its script, or in the row's
    `folder`.
    """
    found: list[Row] = []
    for file in sorted(folder.glob("*.json")):
        board = json.loads(file.read_text(encoding="utf-8"))
        for row in board["rows"]:
            clone = repos / row["project"].rpartition("/")[2]
            here = clone / row.get("folder", Path(row["path"]).parent)
            if here.is_dir() and row["command"] and all(map(_installed, row.get("needs", ()))):
                progress(f"{row['project']} {row['path']}")
                row.update(run_row(row["command"], here))
            found.append(row)
        file.write_text(json.dumps(board, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return found


def _installed(need: str) -> bool:
    name, _, version = need.partition("==")
    try:
        return metadata.version(name) == version
    except metadata.PackageNotFoundError:
        return False


def run_row(command: str, here: Path) -> Row:
    """Run one command of the form `tightgrad audit --run ...` in a folder; return what it says."""
    before, dashes, after = command.partition(" -- ")
    words = [*shlex.split(before)[1:], "--json", *(["--", *shlex.split(after)] if dashes else [])]
    began = time.monotonic()
    with ended_by_signals():
        done = subprocess.run(
            [sys.executable, "-m", "tightgrad_lab.cli", *words], cwd=here, capture_output=True, text=True, check=False
        )
    took = round(time.monotonic() - began)
    if done.returncode >= FAILED:
        last = next(iter(reversed(done.stderr.strip().splitlines())), "it ended without a word")
        last = last.removeprefix("tightgrad: ").replace(f"{here.resolve()}/", "").partition("\x1b")[0]
        return {
            "ok": None,
            "cause": "",
            "weight_low": None,
            "weight_high": None,
            "mass": None,
            "kinds": [],
            "note": last,
            "seconds": took,
        }
    return summary(json.loads(done.stdout)) | {"seconds": took}


def summary(printed: dict[str, Any]) -> Row:
    """A row of the board from what `audit --run --json` prints."""
    faults = [row for row in printed["rows"] if row["wrong"]]

    def extreme(key: str, choose: Callable[[Sequence[float]], float]) -> float | None:
        values = [row[key] for row in faults if row[key] is not None]
        return choose(values) if values else None

    return {
        "ok": printed["ok"],
        "cause": "; ".join(row["cause"] for row in faults),
        "kinds": [row["kind"] for row in faults],
        "unseen": any(row["kind"] == "unseen" for row in printed["rows"]),
        "weight_low": extreme("low", min),
        "weight_high": extreme("high", max),
        "mass": extreme("mass", lambda values: max(values, key=lambda one: abs(one - 1))),
    }


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table: what is wrong first, what could not run last."""
    lines = [
        "| Project | File | Commit | Ranks | Verdict | A target's weight | Note |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda one: ORDER[one["ok"]]):
        right = NOT_SEEN if row.get("unseen") else "right"
        verdict = {True: right, False: row["cause"], None: "could not run"}[row["ok"]]
        low, high = row["weight_low"], row["weight_high"]
        weight = "" if low is None else f"{low:.3g} to {high:.3g}"
        cells = [row["project"], _file(row), row["commit"][:8], row["ranks"], verdict, weight, row["note"]]
        lines.append(f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def short_table(rows: Sequence[Row], language: str) -> str:
    """The rows in few words, as the book shows them in "en" and "zh"."""
    right, not_seen, could_not, to = WORDS[language]
    lines = [f"| {' | '.join(HEAD[language])} |", "|---" * len(HEAD[language]) + "|"]
    for row in sorted(rows, key=lambda one: ORDER[one["ok"]]):
        named = [KINDS.get(kind, (kind, kind))[language == "zh"] for kind in row.get("kinds", ())]
        fine = not_seen if row.get("unseen") else right
        verdict = {True: fine, False: "; ".join(named), None: could_not}[row["ok"]]
        low, high, mass = row["weight_low"], row["weight_high"], row["mass"]
        weight = "" if low is None else f"{low:.2g} {to} {high:.2g}"
        cells = [row["project"], f"`{Path(row['path']).name}`", verdict, weight, "" if mass is None else f"{mass:.3g}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


PAGE = """# What public scripts count

`tightgrad audit --run` made {ran} runs of public training scripts from {projects} projects, as they are, with little
data and small models. {right} show nothing wrong; in {wrong}, targets or windows count more or less than they are due.
{not_run} more could not be run here; their notes say why. Whoever does not accumulate, or whose micro-batches all have
as many targets, has none of this: the notes say with which settings it shows. Each line that is named was also read.
On two cores, two at a time, half of these runs took at most {median} seconds each, and the longest {longest}.

{table}

These commands show the verdicts that are not "right", each in the folder of its script, once
`python benchmarks/board_data.py REPOS` has made its data:

```bash
{commands}
```
"""


def page(folder: Path) -> str:
    """The page of the docs."""
    rows = load_board(folder)
    count = {verdict: sum(row["ok"] is verdict for row in rows) for verdict in ORDER}
    took = sorted(row.get("seconds", 0) for row in rows if row["ok"] is not None)
    commands = [f"# {row['project']}, {row['commit'][:8]}\n{row['command']}" for row in rows if row["ok"] is False]
    return PAGE.format(
        ran=count[True] + count[False],
        projects=len({row["project"] for row in rows if row["ok"] is not None}),
        right=count[True],
        wrong=count[False],
        not_run=count[None],
        median=took[len(took) // 2],
        longest=took[-1],
        table=table(rows).replace("<", "&lt;"),
        commands="\n".join(commands),
    )


def _file(row: Row) -> str:
    lines = f" {row['lines']}" if row["lines"] else ""
    return f"`{row['path']}`{lines}"
