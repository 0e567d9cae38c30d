"""Warnings of this package, in a category of their own, and lists of names in messages."""

import warnings
from collections.abc import Iterable


class TightGradWarning(UserWarning):
    """Warns of a premise of the exact gradient that does not hold, or that cannot be checked; training goes on."""


def warn(message: str, stacklevel: int) -> None:
    """Issue a `TightGradWarning` with this message.

    Args:
        message: what was seen, what follows, and what to write instead.
        stacklevel: as of `warnings.warn`, counted from the caller: 1 is the line that calls this function.
    """
    warnings.warn(message, TightGradWarning, stacklevel=stacklevel + 1)


def first_few(words: Iterable[str], most: int, between: str = ", ") -> str:
    """List the first few words, and say how many more there are."""
    listed = list(words)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return between.join(listed[:most]) + more


def named(names: Iterable[str], most: int = 3) -> str:
    """List the first few names in quotation marks, and say how many more there are."""
    return first_few(map(repr, names), most)
