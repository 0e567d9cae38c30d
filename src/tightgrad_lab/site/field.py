"""The page that sets peers beside TightGrad, from a stored run of the field tests."""

import json
from pathlib import Path

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
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("_", "\\_")
