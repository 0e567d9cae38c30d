"""Methods with their settings, short enough for a table."""

import dataclasses

from tightgrad.core.protocols import Clipper, Codec, Reducer


def label(method: Clipper | Codec | Reducer) -> str:
    """The class and its settings, as `TopK(0.001, values=Sign(1024))`: the first always, others unless the default."""
    parts = []
    for place, field in enumerate(dataclasses.fields(method)):  # type: ignore[arg-type]
        value = getattr(method, field.name)
        default = field.default_factory() if callable(field.default_factory) else field.default
        if place and value == default:
            continue
        shown = _shown(value)
        parts.append(shown if place == 0 else f"{field.name}={shown}")
    return f"{type(method).__name__}({', '.join(parts)})"


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})"
    if isinstance(value, Clipper | Codec | Reducer):
        return label(value)
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
