"""Checks of settings. Each error names the setting, its value, the bound and the fix."""

import operator
import sys
from collections.abc import Iterable
from contextlib import suppress

from tightgrad.core.errors import ConfigError


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raise `ConfigError` unless `value` is one of `choices`."""
    allowed = tuple(choices)
    if not any(type(value) is type(choice) and value == choice for choice in allowed):
        raise ConfigError(f"{name}={value!r} is not known; choose one of {', '.join(map(repr, allowed))}.")


def check_integer(name: str, value: object, *, low: int, high: int | None = None) -> None:
    """Raise `ConfigError` unless `value` is an integer in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name}={value!r} must be an integer{_as_integer(name, value, low)}.")
    if value < low or (high is not None and value > high):
        bound = f"at least {low}" if high is None else f"in [{low}, {high}]"
        raise ConfigError(f"{name}={value} must be {bound}.")
    if value > sys.maxsize:  # which no length, index or seed can be
        raise ConfigError(f"{name} is an integer of {value.bit_length()} bits; it must be at most {sys.maxsize}.")


def check_number(
    name: str, value: object, *, above: float | None = None, low: float | None = None, high: float | None = None
) -> None:
    """Raise `ConfigError` unless `value` is a number with above < value, low <= value, value <= high."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise ConfigError(f"{name}={value!r} must be a number{_as_number(name, value)}.")
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


def check_decay(name: str, value: float) -> None:
    """Raise `ConfigError` unless `value` is a number with 0 <= value < 1, as of a moving average."""
    check_number(name, value, low=0.0)
    if value >= 1:
        raise ConfigError(f"{name}={value:g} must be below 1.")


def _as_integer(name: str, value: object, low: int) -> str:
    """What to write instead: the integer that was probably meant, or the smallest one."""
    if value is not None and not isinstance(value, bool):
        with suppress(TypeError, ValueError, OverflowError, RuntimeError):
            if not isinstance(value, str | float):
                return f"; write {name}=int(...), here {operator.index(value)}"  # type: ignore[arg-type]
            if float(value).is_integer():
                return f"; write {name}={int(float(value))}"
    return f", such as {name}={low}"


def _as_number(name: str, value: object) -> str:
    """What to write instead, where a number was probably meant."""
    if isinstance(value, bool | float) or value is None:
        return ""
    with suppress(TypeError, ValueError, OverflowError, RuntimeError):
        number = float(value)  # type: ignore[arg-type]
        how = f"{number!r}" if isinstance(value, str) else f"float(...), here {number!r}"
        return f"; write {name}={how}" if number == number else ""
    return ""
