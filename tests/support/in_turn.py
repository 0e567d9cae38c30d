"""Which rows of a grid run each time."""

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def in_turn(*axes: Iterable[Any], of: int = 2) -> list[Any]:
    """All combinations, for `parametrize`: one `of` so many runs each time, the others are slow.

    For the next value of any axis it is another one, so that each value keeps a row.
    """
    rows = []
    for places in itertools.product(*map(enumerate, axes)):
        numbers, values = zip(*places, strict=True)
        rows.append(pytest.param(*values, marks=[pytest.mark.slow] if sum(numbers) % of else []))
    return rows
