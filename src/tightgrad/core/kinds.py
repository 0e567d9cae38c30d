"""Checks that a setting is an object of the right kind; the error says what to write instead.

What to write is found by trying, not by a list of mistakes: is the value right for another setting of the same
constructor, is it the name of a method, or can a setting be made from it?
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from types import ModuleType
from typing import Any

from tightgrad.core.errors import ConfigError

FindMethod = Callable[[str], type]


@dataclass(frozen=True)
class Setting:
    """Describes one setting of a constructor.

    Args:
        kind: what it must be.
        usual: the class that is commonly given, or that wraps a plain value such as 4 or "skip"; None where no plain
            value makes sense.
        example: arguments of the constructor, where nothing better is known; with `tg` for tightgrad.
    """

    kind: type
    usual: type | None
    example: str


def check_kind(name: str, value: object, owner: str, settings: Mapping[str, Setting], find: FindMethod) -> None:
    """Raise `ConfigError` unless `value` is None or an object of the kind of this setting.

    Args:
        name: the setting's name.
        value: the value that was given.
        owner: the constructor, such as "Plan".
        settings: all settings of this constructor that are objects, by name.
        find: gives the class of a method's id, or raises `ConfigError`.
    """
    kind = settings[name].kind
    if value is None or isinstance(value, kind):
        return
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    if isinstance(value, type) and issubclass(value, kind):
        hint = f"{value.__name__}(...), as in {owner}({name}={spelling(value)}(...))"
    else:
        hint = instead(name, value, owner, settings, find)
    raise ConfigError(f"{name}={value!r} must be {article} {kind.__name__} or None; write {hint}.")


def instead(name: str, value: object, owner: str, settings: Mapping[str, Setting], find: FindMethod) -> str:
    """Return the call that was probably meant."""
    named = _named(value, find)
    for place in (name, *(other for other in settings if other != name)):
        setting = settings[place]
        if isinstance(value, setting.kind):
            return f"{owner}({place}={written(value)})"
        if named is not None and issubclass(named, setting.kind):
            return f"{owner}({place}={spelling(named)}(...))"
        wrapped = _wrapped(value, named, setting)
        if wrapped is not None and (place == name or named is not None or is_dataclass(value)):
            return f"{owner}({place}={wrapped})"
    return f"{owner}({settings[name].example})"


def _named(value: object, find: FindMethod) -> type | None:
    """The class that a string names by its id, or that was given instead of an object."""
    if isinstance(value, type):
        return value
    if not isinstance(value, str):
        return None
    try:
        return find(value)
    except ConfigError:
        return None


def _wrapped(value: object, named: type | None, setting: Setting) -> str | None:
    """The usual class around the value, where it can be made from that."""
    if setting.usual is None or isinstance(value, bool):
        return None
    first = next(field.name for field in fields(setting.usual) if field.init)
    if named is not None:
        takes = inspect.signature(setting.usual).parameters[first].annotation
        is_taken = any(isinstance(part, type) and issubclass(named, part) for part in _parts(takes))
        return f"{spelling(setting.usual)}({first}={spelling(named)}(...))" if is_taken else None
    try:
        setting.usual(value)
    except Exception:  # whatever a constructor makes of a value that is not for it
        return None
    return f"{spelling(setting.usual)}({first}={written(value)})"


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    yield from getattr(annotation, "__args__", ())


def spelling(cls: type) -> str:
    """Return how a user writes a class of this package, after `import tightgrad as tg`; another's is its name."""
    root = sys.modules["tightgrad"]  # looked up and not imported: it imports this module
    if getattr(root, cls.__name__, None) is cls:
        return f"tg.{cls.__name__}"
    for family, module in vars(root).items():
        if isinstance(module, ModuleType) and getattr(module, cls.__name__, None) is cls:
            return f"tg.{family}.{cls.__name__}"
    return cls.__name__


def written(value: object) -> str:
    """Return Python for a value: an object of settings with those that are not the usual ones."""
    if not is_dataclass(value) or isinstance(value, type):
        return repr(value)
    given = [
        f"{field.name}={written(getattr(value, field.name))}"
        for field in fields(value)
        if field.init and getattr(value, field.name) != _usual_value(field)
    ]
    return f"{spelling(type(value))}({', '.join(given)})"


def _usual_value(field: Field[Any]) -> object:
    return field.default if field.default_factory is MISSING else field.default_factory()
