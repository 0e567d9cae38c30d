"""The page that sets peers beside TightGrad, from a stored run of the field tests."""

import json
from pathlib import Path

from tightgrad_lab.experiments.encode_timeline.table import COLUMNS, quoted_rows

WORDS = {"yes": "yes", "no": "no", "part": "in part", "none": "nothing to keep"}
CHAPTERS = {"A": "Accumulation", "C": "Clipping", "Z": "Compression"}


def latest(results: Path) -> Path:
    """Return the newest stored run of `tests/field`."""
    return max(results.glob("*-field.json"))


def page(results: Path) -> str:
    """Return the page in Markdown.

    Args:
        results: the folder of stored results.
    """
    path = latest(results)
    stored = json.loads(path.read_text(encoding="utf-8"))
    environment = stored["environment"]
    lines = [
        "# Beside other libraries",
        "",
        "Each row is a test in `tests/field`: it runs the other library's public interface and TightGrad on the same",
        "case, and asserts both numbers in one run. A row leaves this page when the other library is mended. The cases",
        "are those in which we found a difference; most of what these libraries do is right, and TightGrad is built to",
        "work with them (see [Integrations](integrations.md)).",
        "",
        f"Run on {environment['time'][:10]} with Python {environment['python']} on a CPU over gloo: `{path.name}`,",
        f"made by `{environment['command']}`.",
        "",
    ]
    for letter, title in CHAPTERS.items():
        own = [row for row in stored["rows"] if row["case"].startswith(letter)]
        lines += [f"## {title}", "", "| Case | Library | Its result | TightGrad's |", "|---|---|---|---|"]
        lines += [
            "| " + " | ".join(_cell(row[key]) for key in ("case", "peer", "peer_result", "tightgrad_result")) + " |"
            for row in own
        ]
        lines.append("")
    return "\n".join([*lines, *_compression()])


def _compression() -> list[str]:
    """What other libraries' compression works with, as their own documentation or source says."""
    lines = [
        "## Which compression works where",
        "",
        "Read in the linked source, not run; TightGrad's row is held by its tests. Table 12 of the handbook, which",
        "`tightgrad lab --only 12` makes, has these rows and runs the hooks of torch and Accelerate beside them.",
        "*Feedback*: what compression leaves out is sent later. *Resume*: a run that was stopped keeps what the method",
        "remembers.",
        "",
        "| Library | Method | DDP | FSDP2 | Feedback | Resume | CPU (gloo) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in quoted_rows():
        cells = " | ".join(WORDS[row[name]["value"]] for name in COLUMNS)
        lines.append(f"| {row['framework']} | [{_cell(row['method'])}]({row[COLUMNS[0]]['source']}) | {cells} |")
    return [*lines, "| TightGrad | [every codec](methods/index.md#codecs) | yes | yes | yes | yes | yes |", ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("_", "\\_")
