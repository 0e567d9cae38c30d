"""How long the rows are in which a tensor's powers are added up."""

from functools import cache

SHORTEST_ROW, LONGEST_ROW = 256, 1024


@cache
def row_numel(numel: int) -> int:
    """The longest row that fits into `numel` without a rest, since that costs a call."""
    fitting = (width for width in range(LONGEST_ROW, SHORTEST_ROW - 1, -1) if numel % width == 0)
    return next(fitting, LONGEST_ROW)
