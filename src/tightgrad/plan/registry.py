"""All methods by id: those named in the family packages, and those of other packages.

Another package adds a method with an entry point in the group "tightgrad.methods" that names its class
(`plan/entry_points.py`). Its code is imported at the first look-up that needs it, never at `import tightgrad`.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from types import MappingProxyType, ModuleType
from typing import Any

from tightgrad import accumulate, clip, codecs, feedback, reducers
from tightgrad.core.card import MethodCard
from tightgrad.core.errors import ConfigError
from tightgrad.core.kinds import spelling
from tightgrad.core.notices import warn
from tightgrad.core.protocols import Clipper, Codec, Feedback, Reducer
from tightgrad.plan.entry_points import ENTRY_POINT_GROUP, Outside, methods_from_outside

FAMILIES = (accumulate, clip, codecs, reducers, feedback)
METHOD_BASES = (Clipper, Codec, Feedback, Reducer)


def collect(classes: Iterable[tuple[str, type]]) -> Mapping[str, type]:
    """Return method classes, given with where they come from, by the id on their card.

    Raises:
        ConfigError: a class has no card, or two have the same id.
    """
    found: dict[str, tuple[str, type]] = {}
    for source, cls in classes:
        card = getattr(cls, "card", None)
        if not isinstance(card, MethodCard):
            raise ConfigError(f"{cls.__name__} from {source} has no `card`; give it a MethodCard.")
        if card.id in found:
            raise ConfigError(f"method id {card.id!r} of {source} is taken by {found[card.id][0]}; choose another id.")
        found[card.id] = (source, cls)
    return MappingProxyType({name: cls for name, (_, cls) in found.items()})


@cache
def built_in() -> Mapping[str, type]:
    """Return every method class of this package by id. Imports no other package."""
    return collect((cls.__module__, cls) for family in FAMILIES for cls in _method_classes(family))


def methods() -> Mapping[str, type]:
    """Return every method class by id, ours first, then those of other packages.

    An entry point that cannot be used is left out, and named in a `TightGradWarning`.
    """
    outside = _outside()
    for problem in outside.problems:
        warn(f"{problem} It is left out of the list of methods; all others work.", stacklevel=2)
    return MappingProxyType({**built_in(), **outside.methods})


def method(name: str) -> type:
    """Return the class with this id. Entry points are looked at only for an id that is not one of this package's.

    Raises:
        ConfigError: there is none; entry points that cannot be used are named, with what is wrong with them.
    """
    if name in built_in():
        return built_in()[name]
    outside = _outside()
    if name in outside.methods:
        return outside.methods[name]
    known = ", ".join([*built_in(), *outside.methods])
    reasons = "".join(f" {problem}" for problem in outside.problems)
    raise ConfigError(
        f"no method has the id {name!r}; known: {known}. A method of another package needs an entry point in the group "
        f"{ENTRY_POINT_GROUP!r} of its pyproject.toml; install the package again after adding it.{reasons}"
    ) from (outside.problems[0].error if outside.problems else None)


def check_ids(part: Any) -> None:
    """Refuse a method, also within others, whose class carries the id of a class of this package.

    Raises:
        ConfigError: there is one; it and the class that has the id are named.
    """
    if isinstance(part, tuple | list):
        for one in part:
            check_ids(one)
    card = getattr(part, "card", None)
    owner = built_in().get(card.id) if isinstance(card, MethodCard) else None
    if card is not None and owner is not None and type(part) is not owner:
        name, theirs = type(part).__name__, spelling(owner)
        own_id = f"my_{name.lower()}" if name.lower() in built_in() else name.lower()
        raise ConfigError(
            f"{name} carries the id {card.id!r} of {theirs}, so a plan read from JSON, a checkpoint and the "
            f"comparison of ranks would take one for the other. Give {name} a card of its own: "
            f"card = dataclasses.replace({theirs}.card, id={own_id!r})."
        )
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        for field in dataclasses.fields(part):
            check_ids(getattr(part, field.name, None))


def cards() -> list[MethodCard]:
    """Return the cards of all methods. An entry point that cannot be used is named in a `TightGradWarning`."""
    return [cls.card for cls in methods().values()]  # type: ignore[attr-defined]


def _outside() -> Outside:
    return methods_from_outside({name: cls.__module__ for name, cls in built_in().items()})


def _method_classes(module: ModuleType) -> Iterator[type]:
    for value in vars(module).values():
        if isinstance(value, type) and (hasattr(value, "card") or issubclass(value, METHOD_BASES)):
            yield value
