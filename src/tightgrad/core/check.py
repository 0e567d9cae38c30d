"""Checks of settings. Each says the name, the value, the bound and the fix."""

import sys
from collections.abc import Iterable

from tightgrad.core.errors import ConfigError


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raise `ConfigError` unless `value` is one of `choices`."""
    allowed = tuple(choices)
    if not any(type(value) is type(choice) and value == choice for choice in allowed):
        raise ConfigError(f"{name}={value!r} is not known; choose one of {', '.join(map(repr, allowed))}.")


def check_integer(name: str, value: object, *, low: int, high: int | None = None) -> None:
    """Raise `ConfigError` unless `value` is an integer in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name}={value!r} must be an integer.")
    if value < low or (high is not None and value > high):
        bound = f"at least {low}" if high is None else f"in [{low}, {high}]"
        raise ConfigError(f"{name}={value} must be {bound}.")


def check_number(
    name: str, value: object, *, above: float | None = None, low: float | None = None, high: float | None = None
) -> None:
    """Raise `ConfigError` unless `value` is a number with above < value, low <= value, value <= high."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise ConfigError(f"{name}={value!r} must be a number.")
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise ConfigError(f"{name} is an integer beyond the range of floating point; write inf.")
    bounds = []
    if above is not None:
        bounds.append(f"above {above:g}")
    if low is not None:
        bounds.append(f"at least {low:g}")
    if high is not None:
        bounds.append(f"at most {high:g}")
    if (
        (above is not None and value <= above)
        or (low is not None and value < low)
        or (high is not None and value > high)
    ):
        raise ConfigError(f"{name}={value:g} must be {' and '.join(bounds)}.")
