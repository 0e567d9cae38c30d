"""`tightgrad methods`: what exists, when to use which, from the methods' own cards."""

from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from tightgrad_lab.cli.terminal.options import Json
from tightgrad_lab.cli.terminal.output import print_json
from tightgrad_lab.errors import ArgumentError

if TYPE_CHECKING:
    from tightgrad.core.card import MethodCard

KEYS = ("id", "kind", "summary", "unbiased", "linear", "scope", "reference", "use_when", "avoid_when")


Name = Annotated[str | None, typer.Argument(help="Explain the method with this id, such as topk.", show_default=False)]


def methods(name: Name = None, as_json: Json = False) -> None:
    """List the [bold]methods[/]: what each does, when to use it, and when not; or explain one."""
    from tightgrad.plan.registry import cards
    from tightgrad_command.methods import card_of, explained

    try:
        chosen = cards() if name is None else [card_of(name, cards())]
    except LookupError as error:
        raise ArgumentError(error.args[0]) from None
    if as_json:
        print_json([{key: asdict(card)[key] for key in KEYS} for card in chosen])
    elif name is not None:
        print(explained(name))
    else:
        _print_table(chosen)


def _print_table(cards: "list[MethodCard]") -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from tightgrad_command.methods import facts

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("method", style="bold", no_wrap=True)
    table.add_column("what it does, [green]+ use when[/], [yellow]- avoid when[/]")
    for kind, group in groupby(cards, key=lambda card: card.kind):
        for card in group:
            about = (
                f"{escape(card.summary)} [dim]({', '.join(facts(card))})[/]",
                f"[green]+ {escape(card.use_when)}[/]",
                f"[yellow]- {escape(card.avoid_when)}[/]",
            )
            table.add_row(f"{card.id}\n[dim]{kind}[/]", "\n".join(about))
        table.add_section()
    Console().print(table)
