"""The rows of case studies as tables in a terminal."""

from collections.abc import Sequence
from typing import Any

from tightgrad_lab.cli.terminal.units import factor_text, metric_text, nbytes_text, seconds_text


def print_rows(rows: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """One table a title."""
    if not rows:
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    for title in dict.fromkeys(title for title, _ in rows):
        own = [row for name, row in rows if name == title]
        several_seeds = len({row["seed"] for row in own}) > 1
        table = Table(
            box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title=f"{title}, per rank", title_justify="left"
        )
        table.add_column("combination", no_wrap=True)
        if several_seeds:
            table.add_column("seed", justify="right")
        for heading in (own[0]["metric"], "sent", "factor", "memory", "step", "skips"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in own:
            table.add_row(
                row["combination"],
                *([str(row["seed"])] if several_seeds else []),
                metric_text(row),
                nbytes_text(row["wire_bytes"]),
                factor_text(row["compression_factor"]),
                nbytes_text(row["peak_memory_bytes"]),
                seconds_text(row["step_seconds"]),
                str(row["skipped_steps"]),
            )
        Console().print(table)
