"""Compares an answer with the right one, and says in words how they differ."""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from tightgrad_lab.exercises import words
from tightgrad_lab.exercises.words import Words

NEAR = 1e-2
"""Relative error up to which an answer counts as rounded and not as wrong."""


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor or an array."""
    return hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "tolist")


def plain(value: Any) -> Any:
    """Return tensors as nested lists, everything else as it is."""
    return value.tolist() if is_tensor(value) else value


def same(found: Any, right: Any, tolerance: float) -> bool:
    """Whether an answer agrees with another one; NaN agrees with NaN."""
    return difference(found, right, tolerance) is None


def difference(found: Any, right: Any, tolerance: float) -> Words | None:
    """Return what is wrong with an answer, or None."""
    if found is Ellipsis:
        return words.STARTER
    if found is None and right is not None:
        return words.NOTHING
    if isinstance(right, Mapping):
        return _entries(found, right, tolerance)
    if is_tensor(right):
        return _tensor(found, right, tolerance)
    if isinstance(right, Sequence) and not isinstance(right, str):
        return _sequence(found, right, tolerance)
    if isinstance(right, bool) or not isinstance(right, numbers.Real):
        return _exact(found, right)
    if is_tensor(found) and tuple(found.shape) == ():
        found = found.item()
    if isinstance(found, bool) or not isinstance(found, numbers.Real):
        return words.KIND.of(right=_kind(right), found=_kind(found))
    return _numbers([float(found)], [float(right)], tolerance)


def _exact(found: Any, right: Any) -> Words | None:
    if type(plain(found)) is not type(right):
        return words.KIND.of(right=_kind(right), found=_kind(found))
    return None if plain(found) == right else words.VALUE.of(found=found, right=right)


def _entries(found: Any, right: Mapping[str, Any], tolerance: float) -> Words | None:
    if not isinstance(found, Mapping):
        return words.KIND.of(right=_kind(right), found=_kind(found))
    for key, value in right.items():
        if key not in found:
            return words.KEY.of(key=key)
        problem = difference(found[key], value, tolerance)
        if problem is not None:
            return problem.after(Words(str(key), str(key)))
    return None


def _tensor(found: Any, right: Any, tolerance: float) -> Words | None:
    if not is_tensor(found):
        return words.KIND.of(right=_kind(right), found=_kind(found))
    if tuple(found.shape) != tuple(right.shape):
        return words.SHAPE.of(right=tuple(right.shape), found=tuple(found.shape))
    return _numbers(_flat(found), _flat(right), tolerance)


def _flat(tensor: Any) -> list[float]:
    return [float(value) for value in tensor.reshape(-1).tolist()]


def _sequence(found: Any, right: Sequence[Any], tolerance: float) -> Words | None:
    found = plain(found)
    if isinstance(found, str) or not isinstance(found, Sequence):
        return words.KIND.of(right=_kind(right), found=_kind(found))
    if len(found) != len(right):
        return words.LENGTH.of(right=len(right), found=len(found))
    if right and all(isinstance(one, numbers.Real) and not isinstance(one, bool) for one in right):
        found = [one.item() if is_tensor(one) and tuple(one.shape) == () else one for one in found]
        for one in found:
            if one is Ellipsis:
                return words.STARTER
            if isinstance(one, bool) or not isinstance(one, numbers.Real):
                return words.KIND.of(right=_kind(right[0]), found=_kind(one))
        return _numbers([float(one) for one in found], [float(one) for one in right], tolerance)
    for place, (mine, yours) in enumerate(zip(found, right, strict=True)):
        problem = difference(mine, yours, tolerance)
        if problem is not None:
            return problem.after(Words(f"entry {place}", f"第 {place} 项（从 0 数起）"))
    return None


def _numbers(found: list[float], right: list[float], tolerance: float) -> Words | None:
    """Compare numbers, relative to the largest of the right ones."""
    scale = max((abs(one) for one in right if math.isfinite(one)), default=0.0)
    apart = [place for place in range(len(right)) if not _close(found[place], right[place], tolerance * scale + 1e-12)]
    if not apart:
        return None
    first = apart[0]
    shown = {"found": number(found[first]), "right": number(right[first])}
    if not math.isfinite(found[first]) and math.isfinite(right[first]):
        return words.NOT_FINITE.of(**shown)
    if all(_close(found[place], right[place], NEAR * abs(right[place])) for place in apart):
        return words.ROUNDED.of(**shown)
    if all(_close(-found[place], right[place], tolerance * scale + 1e-12) for place in range(len(right))):
        return words.SIGN.of(**shown)
    return words.VALUE.of(**shown)


def _close(found: float, right: float, error: float) -> bool:
    return (math.isnan(found) and math.isnan(right)) or found == right or abs(found - right) <= error


def ratio(found: Any, right: Any) -> float | None:
    """Return the one factor between two answers, or None if there is none."""
    mine, yours = _all_numbers(found), _all_numbers(right)
    pairs = [(one, other) for one, other in zip(mine, yours, strict=False) if one or other]
    if len(mine) != len(yours) or not pairs or any(not other or not math.isfinite(one) for one, other in pairs):
        return None
    factors = [one / other for one, other in pairs]
    middle = factors[0]
    return middle if middle and all(math.isclose(one, middle, rel_tol=1e-6) for one in factors) else None


def comparable(found: Any, right: Any) -> bool:
    """Whether an answer consists of as many finite numbers as the right one."""
    mine = _all_numbers(found)
    return len(mine) == len(_all_numbers(right)) > 0 and all(map(math.isfinite, mine))


def _all_numbers(value: Any) -> list[float]:
    value = plain(value)
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [number for one in value for number in _all_numbers(one)]
    return [float(value)] if isinstance(value, numbers.Real) else []


def unwrapped(value: Any) -> Words | None:
    """Say that a tensor was returned where a float of Python was asked for."""
    return words.TENSOR if is_tensor(value) else None


def number(value: float) -> str:
    """A number as a person reads it."""
    return f"{value:.6g}"


def _kind(value: Any) -> str:
    if is_tensor(value):
        return f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}"
    if isinstance(value, Mapping):
        return "dict"
    if isinstance(value, float):
        return "float"
    return type(value).__name__


def shown(value: Any, width: int = 200) -> str:
    """A case as a person reads it, on one line."""
    value = value.tolist() if is_tensor(value) and value.numel() <= 12 else value
    if is_tensor(value):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        text = ", ".join(f"{key}={shown(one)}" for key, one in value.items())
    elif isinstance(value, (list, tuple)):
        text = "[" + ", ".join(shown(one) for one in value) + "]"
    else:
        text = f"{value:g}" if isinstance(value, float) else str(value)
        text = type(value).__name__ if "\n" in text else text
    return text if len(text) <= width else text[: width - 3] + "..."
