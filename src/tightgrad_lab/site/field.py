"""The page that sets peers beside TightGrad: what was read in their sources, and a stored run of the field tests."""

import json
from pathlib import Path
from typing import Any

from tightgrad_lab.experiments.encode_timeline.table import COLUMNS, READ, quoted_rows

WORDS = {"yes": "yes", "no": "no", "part": "in part", "none": "nothing to keep", "outside": "not its task"}
OURS = {
    "window": "how-to-choose.md",
    "norm": "methods/global_norm.md",
    "finite": "faults.md",
    "codec": "methods/index.md#codecs",
    "resume": "checkpoints.md",
}
"""Where this site says more of TightGrad's own cells, by column."""
TESTS = "tests/field/"
CHAPTERS = {"A": "Accumulation", "C": "Clipping", "Z": "Compression"}


def latest(results: Path, name: str = "field") -> Path:
    """Return the newest stored file of this name: a run of `tests/field`, or "peers", what was read."""
    return max(results.glob(f"*-{name}.json"))


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
        "What PyTorch, Accelerate, Lightning, DeepSpeed, torchft, torchcomms, torchtitan and optax do with a gradient",
        "between backward and step, and the cases in which we found a difference. Most of what these libraries do is",
        "right, and TightGrad is built to work with them (see [Integrations](integrations.md)).",
        "",
        *_side_by_side(json.loads(latest(results, "peers").read_text(encoding="utf-8"))),
        "## Cases that were run",
        "",
        "Each row is a test in `tests/field`: it runs the other library's public interface and TightGrad on the same",
        "case, and asserts both numbers in one run. A row leaves this page when the other library is fixed.",
        "",
        f"Run on {environment['time'][:10]} with Python {environment['python']} on a CPU over gloo: `{path.name}`,",
        f"made by `{environment['command']}`.",
        "",
    ]
    for letter, title in CHAPTERS.items():
        own = [row for row in stored["rows"] if row["case"].startswith(letter)]
        lines += [f"### {title}", "", "| Case | Library | Its result | TightGrad's |", "|---|---|---|---|"]
        lines += [
            "| " + " | ".join(_cell(row[key]) for key in ("case", "peer", "peer_result", "tightgrad_result")) + " |"
            for row in own
        ]
        lines.append("")
    return "\n".join([*lines, *_compression()])


def _side_by_side(read: dict[str, Any]) -> list[str]:
    """One row for each library; every cell links to the lines that it was read in, or to the test that runs it."""
    titles: dict[str, str] = read["columns"]
    lines = [
        "## Between backward and step",
        "",
        f"The cells were read on {read['read']} in the linked lines, at the commit that each link names. Those marked",
        "*run* are asserted by the test that they name, in `tests/field`. TightGrad's row is checked by its own tests.",
        "",
        f"| Library | {' | '.join(titles.values())} |",
        "|---" * (len(titles) + 1) + "|",
    ]
    for row in read["rows"]:
        cells = " | ".join(_source(row, *row[name]) for name in titles)
        lines.append(f"| [{row['library']}]({row['repository']}/tree/{row['commit']}) | {cells} |")
    own = " | ".join(f"[yes]({OURS[name]})" for name in titles)
    return [*lines, f"| TightGrad | {own} |", ""]


def _source(row: dict[str, Any], value: str, words: str, place: str) -> str:
    if place.startswith(TESTS):
        return f"{WORDS[value]} (run): {words}; `{place.removeprefix(TESTS)}`"
    link = f"[{WORDS[value]}]({row['repository']}/blob/{row['commit']}/{place})"
    return f"{link}: {words}" if words else link


def _compression() -> list[str]:
    """What other libraries' compression works with, as their own documentation or source says."""
    lines = [
        "## Which compression works where",
        "",
        f"The rows were read in the linked source on {READ}, not run; tests check TightGrad's row. Table 12 of the",
        "handbook, made by `tightgrad lab --only 12`, has these rows and runs the hooks of torch and Accelerate beside",
        "them. *Feedback*: what compression leaves out is sent later. *Resume*: a run that was stopped keeps what the",
        "method remembers.",
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
