"""`tightgrad methods`: what exists, when to use which, from the methods' own cards."""

from dataclasses import asdict
from itertools import groupby
from typing import Any

from tightgrad_lab.cli.options import Json
from tightgrad_lab.cli.output import print_json

KEYS = ("id", "kind", "summary", "unbiased", "linear", "scope", "reference", "use_when", "avoid_when")


def methods(as_json: Json = False) -> None:
    """List the [bold]methods[/]: what each does, when to use it, and when not."""
    from tightgrad.plan.registry import cards

    rows = [{key: asdict(card)[key] for key in KEYS} for card in cards()]
    if as_json:
        print_json(rows)
    else:
        _print_table(rows)


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("method", style="bold", no_wrap=True)
    table.add_column("what it does, [green]+ use when[/], [yellow]- avoid when[/]")
    for kind, group in groupby(rows, key=lambda row: row["kind"]):
        for row in group:
            facts = (row["scope"], "unbiased" if row["unbiased"] else "", "linear" if row["linear"] else "")
            about = (
                f"{escape(row['summary'])} [dim]({', '.join(filter(None, facts))})[/]",
                f"[green]+ {escape(row['use_when'])}[/]",
                f"[yellow]- {escape(row['avoid_when'])}[/]",
            )
            table.add_row(f"{row['id']}\n[dim]{kind}[/]", "\n".join(about))
        table.add_section()
    Console().print(table)
