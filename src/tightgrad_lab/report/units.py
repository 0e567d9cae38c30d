"""Numbers as readers see them; the same text in every language."""

import math

NBSP = "\u00a0"
MISSING = "–"


def _scaled(value: float, unit: str) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}{NBSP}{unit}"


def bytes_text(value: float) -> str:
    """Bytes in binary units: 482 KiB, 1.41 MiB."""
    if value < 1024:
        return f"{value:.0f}{NBSP}B"
    for unit in ("KiB", "MiB"):
        value /= 1024
        if value < 999.5:
            return _scaled(value, unit)
    return _scaled(value / 1024, "GiB")


def bytes_tick(value: float) -> str:
    """Bytes on an axis, without the zeros that a round number does not need."""
    number, unit = bytes_text(value).split(NBSP)
    return f"{float(number):g}{NBSP}{unit}"


def seconds_text(value: float) -> str:
    """A duration with the unit that keeps it readable."""
    if value < 1e-3:
        return _scaled(value * 1e6, "µs")
    if value < 1:
        return _scaled(value * 1e3, "ms")
    if value < 120:
        return _scaled(value, "s")
    return _scaled(value / 60, "min")


def rate_text(value: float) -> str:
    """The speed of a link: 10 Mbit/s, 1 Gbit/s."""
    unit = "Gbit/s" if value >= 9.995e8 else "Mbit/s"
    return f"{value / (1e9 if unit == 'Gbit/s' else 1e6):.3g}{NBSP}{unit}"


def percent_text(value: float) -> str:
    """A fraction as a percentage with one decimal."""
    return f"{value * 100:.1f}{NBSP}%"


def points_text(value: float) -> str:
    """A difference of fractions in percentage points, always signed."""
    return f"{signed(value * 100, 1)}{NBSP}pp"


def factor_text(value: float) -> str:
    """A ratio: 98.2×, 1.00×, 0.0026×."""
    if not math.isfinite(value):
        return MISSING
    if abs(value) < 0.1:
        return f"{short_text(value)}×"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}×"


def count_text(value: float) -> str:
    """A count with thousands separators."""
    return f"{value:,.0f}"


def number_text(value: float) -> str:
    """A plain number with three significant digits."""
    if not math.isfinite(value):
        return "∞" if math.isinf(value) else "NaN"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0}f}".replace("-", "−")
    digits, exponent = f"{value:.2e}".split("e")
    return f"{digits}e{int(exponent)}".replace("-", "−")


def short_text(value: float) -> str:
    """A number with two significant digits, and powers of ten as in `number_text`: 0.0026, 1.2e−7."""
    mantissa, _, exponent = f"{value:.2g}".partition("e")
    return (f"{mantissa}e{int(exponent)}" if exponent else mantissa).replace("-", "−")


def signed(value: float, digits: int) -> str:
    """A number with its sign, the true minus included; zero has none."""
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text[1:] if float(f"{value:.{digits}f}") == 0 else text
