"""Numbers as a person reads them in a terminal."""

from collections.abc import Mapping
from typing import Any


def nbytes_text(nbytes: Any) -> str:
    """Bytes with a decimal prefix and three digits."""
    value, prefixes = float(nbytes), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(prefixes)
    while value >= 999.5 and unit != "TB":
        value, unit = value / 1000, next(prefixes)
    return f"{value:.0f} B" if unit == "B" else f"{value:#.3g} {unit}".replace(". ", " ")


def seconds_text(seconds: Any) -> str:
    """Milliseconds below one second."""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def factor_text(factor: Any) -> str:
    """How many times fewer bytes."""
    return "-" if factor is None else f"{factor:.1f}x"


def metric_text(row: Mapping[str, Any]) -> str:
    """A share as per cent, anything else with three decimals."""
    value = row["value"]
    return f"{value * 100:.1f} %" if row["metric"] == "accuracy" else f"{value:.3f}"
