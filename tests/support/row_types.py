"""Compares results of experiments with the types of their tables and figures."""

import types
import typing
from typing import Any


def wrong(value: Any, kind: Any, path: str) -> list[str]:
    """Where a value is not of a kind that these types are made of."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return []
    if typing.is_typeddict(kind):
        if not isinstance(value, dict):
            return [path]
        keys = [f"{path}.{key}" for key in set(value) ^ kind.__required_keys__ if key not in kind.__optional_keys__]
        hints = typing.get_type_hints(kind)
        return keys + [at for key in hints if key in value for at in wrong(value[key], hints[key], f"{path}.{key}")]
    if origin is types.UnionType:
        return [] if any(not wrong(value, one, path) for one in arguments) else [path]
    if origin in (list, dict) and not isinstance(value, origin):
        return [path]
    if origin is list:
        return [at for place, one in enumerate(value) for at in wrong(one, arguments[0], f"{path}[{place}]")]
    if origin is dict:
        return [at for key, one in value.items() for at in wrong(one, arguments[1], f"{path}[{key!r}]")]
    accepted = (int, float) if kind is float else kind
    return [] if isinstance(value, accepted) and (kind is bool or not isinstance(value, bool)) else [path]
