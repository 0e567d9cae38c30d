"""Field cases: what a peer does wrong today and TightGrad does right, both asserted in one run.

How to write one:

    def test_c1(field_row):
        peer, ours, exact = ...                       # run both, and the float64 target
        assert relative_error(ours, exact) < 1e-6     # first what TightGrad promises
        field_row(
            "C1",                                     # the row of the field record
            "torch",                                  # a distribution's name; its version is looked up
            f"post-clip norm {peer:.4f}",             # both numbers as text: a few words, same unit
            f"{ours:.4f}",
            peer_is_wrong=peer > 1.001,               # as it was recorded; last line of the test
        )

`field_row` keeps the row for the table that is printed at the end of the run. If the peer is not wrong any more, it
skips the test with a line that says so, so that a fix upstream does not break the build. A crash of the peer is a
result like any other: catch it and give its name.

Warnings are errors here. Silence a peer's own ones narrowly, at the test: @pytest.mark.filterwarnings("ignore:...").
"""

import json
import os
import platform
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

import pytest

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}

PROPERTY = "field_row"
STORE = "TIGHTGRAD_FIELD_JSON"
"""Names the file that the rows are stored in, for `benchmarks/results` and the page of comparisons."""
HEADINGS = ("case", "peer", "the peer's number", "TightGrad's number")


class FieldRow(Protocol):
    def __call__(
        self, case: str, peer: str, peer_result: str, tightgrad_result: str, *, peer_is_wrong: bool = True
    ) -> None: ...


@pytest.fixture
def field_row(record_property) -> FieldRow:
    """Keep one row of the table; skip the test if the peer is not wrong any more."""

    def keep(case, peer, peer_result, tightgrad_result, *, peer_is_wrong=True):
        try:
            named = f"{peer} {version(peer)}"
        except PackageNotFoundError:  # re-stated in the test from a named source
            named = peer
        record_property(PROPERTY, (case, named, peer_result, tightgrad_result))
        if not peer_is_wrong:
            pytest.skip(f"{case}: peer fixed in {named}, or no longer wrong as recorded ({peer_result}): update FIELD")

    return keep


def pytest_terminal_summary(terminalreporter) -> None:
    rows = sorted(_rows(terminalreporter.stats), key=_by_number)
    if not rows:
        return
    if STORE in os.environ:
        _store(Path(os.environ[STORE]), rows)
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)]
    terminalreporter.section("the field: peers against TightGrad")
    for row in (HEADINGS, tuple("-" * width for width in widths), *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        terminalreporter.write_line("  ".join(cells).rstrip())


def _store(path: Path, rows: list[tuple[str, ...]]) -> None:
    environment = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "command": f"{STORE}=FILE python -m pytest tests/field",
    }
    named = [dict(zip(("case", "peer", "peer_result", "tightgrad_result"), row, strict=True)) for row in rows]
    path.write_text(json.dumps({"environment": environment, "rows": named}, indent=1) + "\n", encoding="utf-8")


def _by_number(row: tuple[str, ...]) -> list[str | int]:
    """C2 before C14."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", " ".join(row))]


def _rows(stats) -> Iterator[tuple[str, ...]]:
    for reports in list(stats.values()):
        for report in reports:
            if getattr(report, "when", None) == "call":
                yield from (tuple(value) for name, value in report.user_properties if name == PROPERTY)
