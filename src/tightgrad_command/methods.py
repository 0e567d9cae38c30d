"""What the methods say about themselves, as plain text."""

import inspect
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from typing import Any

from tightgrad.core.card import MethodCard


def listed() -> str:
    """Return a line for each method: its id, its kind and what it does."""
    from tightgrad.plan.registry import cards

    return "\n".join(f"{card.id:<20} {card.kind:<10} {card.summary}" for card in cards())


def explained(name: str) -> str:
    """Return a method's card, and the documentation of its class with settings and example.

    Raises:
        LookupError: no method has the id `name`; the message has those that are nearest.
    """
    from tightgrad.plan.registry import cards, method

    card = card_of(name, cards())
    cls = method(name)
    package = ".".join(cls.__module__.split(".")[:2])
    return (
        f"{name} ({', '.join(facts(card, card.kind))}): {card.summary}\n\n"
        f"use when    {card.use_when}\navoid when  {card.avoid_when}\nfrom        {card.reference}\n\n"
        f"{package}.{cls.__name__}({', '.join(map(_setting, fields(cls)))})\n\n{inspect.getdoc(cls)}"
    )


def card_of(name: str, cards: Sequence[MethodCard]) -> MethodCard:
    """Return the card with the id `name`.

    Raises:
        LookupError: there is none; the message has those that are nearest.
    """
    for card in cards:
        if card.id == name:
            return card
    near = get_close_matches(name, [card.id for card in cards]) or [card.id for card in cards]
    raise LookupError(f"no method has the id {name!r}; {', '.join(near)} {'is' if len(near) == 1 else 'are'} known.")


def facts(card: MethodCard, *first: str) -> tuple[str, ...]:
    """Return `first`, the scope, and what the method is of unbiased and linear."""
    own = (card.scope, "unbiased" if card.unbiased else "", "linear" if card.linear else "")
    return tuple(filter(None, (*first, *own)))


def _setting(field: Field[Any]) -> str:
    """Return a setting with its default as one writes it."""
    if field.default_factory is not MISSING:
        return f"{field.name}={field.default_factory()!r}"
    return field.name if field.default is MISSING else f"{field.name}={field.default!r}"
