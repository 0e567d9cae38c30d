"""A nested state taken apart, into its tensors by path and the rest, and put together again."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

Path = tuple[object, ...]
"""Keys of mappings and places in lists, from the outside in."""


def tensors_apart(value: Any, is_taken: Callable[[object], bool], path: Path = ()) -> tuple[Any, dict[Path, Tensor]]:
    """Return a copy of a state with None in the place of its tensors, and these by path.

    Args:
        value: dicts, lists and tuples, one in the other, of anything.
        is_taken: tells which values are tensors that are taken out.
        path: of `value` itself.
    """
    if is_taken(value):
        return None, {path: value}
    if not isinstance(value, Mapping | list | tuple):
        return value, {}
    found: dict[Path, Tensor] = {}
    rest = []
    for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
        left, tensors = tensors_apart(inner, is_taken, (*path, key))
        rest.append((key, left))
        found |= tensors
    if isinstance(value, Mapping):
        return dict(rest), found
    return _sequence_like(value, [left for _, left in rest]), found


def together(rest: Any, tensors: Mapping[Path, Tensor], path: Path = ()) -> Any:
    """Return the state that `tensors_apart` was given."""
    if path in tensors:
        return tensors[path]
    if isinstance(rest, dict):
        return {key: together(inner, tensors, (*path, key)) for key, inner in rest.items()}
    if isinstance(rest, list | tuple):
        return _sequence_like(rest, [together(inner, tensors, (*path, i)) for i, inner in enumerate(rest)])
    return rest


def _sequence_like(value: list[Any] | tuple[Any, ...], items: list[Any]) -> Any:
    """A list or tuple of the same type; of a named one, with the same names."""
    make = getattr(type(value), "_make", type(value))
    return make(items)
