"""Warnings of this package, in a category of their own."""

import warnings


class TightGradWarning(UserWarning):
    """Warns of a premise of the exact gradient that does not hold, or that cannot be checked; training goes on."""


def warn(message: str, stacklevel: int) -> None:
    """Issue a `TightGradWarning` with this message.

    Args:
        message: what was seen, what follows, and what to write instead.
        stacklevel: as of `warnings.warn`, counted from the caller: 1 is the line that calls this function.
    """
    warnings.warn(message, TightGradWarning, stacklevel=stacklevel + 1)
