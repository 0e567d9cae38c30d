"""Methods with their settings, short enough for a table."""

import dataclasses

from tightgrad.core.protocols import Codec, Reducer


def label(method: Codec | Reducer) -> str:
    """The class and its settings, as `TopK(0.001, values=Sign(1024))`: the first always, others unless the default."""
    parts = []
    for place, field in enumerate(dataclasses.fields(method)):  # type: ignore[arg-type]
        value = getattr(method, field.name)
        default = field.default_factory() if callable(field.default_factory) else field.default
        if place and value == default:
            continue
        shown = (
            label(value) if isinstance(value, Codec | Reducer) else f"{value:g}" if _is_number(value) else str(value)
        )
        parts.append(shown if place == 0 else f"{field.name}={shown}")
    return f"{type(method).__name__}({', '.join(parts)})"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
