"""`tightgrad methods`: what exists, when to use which, from the methods' own cards."""

import inspect
from dataclasses import MISSING, Field, asdict, fields
from difflib import get_close_matches
from itertools import groupby
from typing import Annotated, Any

import typer

from tightgrad_lab.cli.options import Json
from tightgrad_lab.cli.output import print_json
from tightgrad_lab.errors import ArgumentError

KEYS = ("id", "kind", "summary", "unbiased", "linear", "scope", "reference", "use_when", "avoid_when")


Name = Annotated[str | None, typer.Argument(help="Explain one method: its id, such as topk.", show_default=False)]


def methods(name: Name = None, as_json: Json = False) -> None:
    """List the [bold]methods[/]: what each does, when to use it, and when not; or explain one."""
    from tightgrad.plan.registry import cards

    rows = [{key: asdict(card)[key] for key in KEYS} for card in cards()]
    if name is not None:
        rows = [row for row in rows if row["id"] == name] or _unknown(name, [row["id"] for row in rows])
    if as_json:
        print_json(rows)
    elif name is not None:
        _explain(rows[0])
    else:
        _print_table(rows)


def _unknown(name: str, ids: list[str]) -> list[dict[str, Any]]:
    """Raise `ArgumentError` with the ids that are nearest."""
    near = get_close_matches(name, ids) or ids
    raise ArgumentError(f"no method has the id {name!r}; {', '.join(near)} {'is' if len(near) == 1 else 'are'} known.")


def _explain(row: dict[str, Any]) -> None:
    """Print a method's card, and the documentation of its class with settings and example."""
    from tightgrad.plan.registry import method

    cls = method(row["id"])
    facts = (row["kind"], row["scope"], "unbiased" if row["unbiased"] else "", "linear" if row["linear"] else "")
    package = ".".join(cls.__module__.split(".")[:2])
    print(f"{row['id']} ({', '.join(filter(None, facts))}): {row['summary']}\n")
    print(f"use when    {row['use_when']}\navoid when  {row['avoid_when']}\nfrom        {row['reference']}\n")
    print(f"{package}.{cls.__name__}({', '.join(map(_setting, fields(cls)))})\n\n{inspect.getdoc(cls)}")


def _setting(field: Field[Any]) -> str:
    """Return a setting with its default as one writes it."""
    if field.default_factory is not MISSING:
        return f"{field.name}={field.default_factory()!r}"
    return field.name if field.default is MISSING else f"{field.name}={field.default!r}"


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
