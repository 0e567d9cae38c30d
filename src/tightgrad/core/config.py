"""Frozen dataclasses to JSON values and back. Unknown and missing keys are refused with the alternatives."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from tightgrad.core.errors import ConfigError

Config = dict[str, Any]
FindMethod = Callable[[str], type]


def to_config(value: Any) -> Any:
    """Turn a settings object into JSON values; a method (an object with a card) carries its id."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        settings = {field.name: to_config(getattr(value, field.name)) for field in dataclasses.fields(value)}
        card = getattr(value, "card", None)
        return {"id": card.id, **settings} if card is not None else settings
    if isinstance(value, tuple | list):
        return [to_config(item) for item in value]
    return value


def method_from_config(config: Any, find: FindMethod, where: str) -> Any:
    """Make a method from {"id": ..., **settings}; `find` maps an id to its class."""
    if config is None:
        return None
    if not isinstance(config, Mapping) or not isinstance(config.get("id"), str):
        raise ConfigError(f'{where}={config!r} must be null or an object with an "id"; see `tightgrad methods`.')
    settings = {key: value for key, value in config.items() if key != "id"}
    return from_config(find(config["id"]), settings, find, f"{where} ({config['id']})")


def from_config(cls: type, config: Any, find: FindMethod, where: str) -> Any:
    """Make a dataclass from a mapping of its fields; nested objects with an id become methods."""
    if not isinstance(config, Mapping):
        raise ConfigError(f"{where}={config!r} must be an object.")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(config) - set(fields))
    if unknown:
        known = ", ".join(fields) or "none"
        raise ConfigError(f"{where} has no setting {', '.join(map(repr, unknown))}; its settings are: {known}.")
    missing = [
        name
        for name, field in fields.items()
        if name not in config and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where} needs {', '.join(map(repr, missing))}.")
    return cls(**{name: _nested(value, find, f"{where}.{name}") for name, value in config.items()})


def _nested(value: Any, find: FindMethod, where: str) -> Any:
    if isinstance(value, Mapping) and "id" in value:
        return method_from_config(value, find, where)
    if isinstance(value, list):
        return tuple(_nested(item, find, where) for item in value)
    return value
