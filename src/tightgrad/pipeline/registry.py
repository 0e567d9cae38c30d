"""All methods by id: those named in the family packages, and those of other packages.

Another package adds a method with an entry point in the group "tightgrad.methods" that names its class. An id that
is taken raises: nothing is ever replaced.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType, ModuleType

from tightgrad import accumulate, clip, codecs, feedback, reducers
from tightgrad.core.card import MethodCard
from tightgrad.core.errors import ConfigError
from tightgrad.core.protocols import Clipper, Codec, Feedback, Reducer

ENTRY_POINT_GROUP = "tightgrad.methods"
FAMILIES = (accumulate, clip, codecs, reducers, feedback)
METHOD_BASES = (Clipper, Codec, Feedback, Reducer)


def collect(classes: Iterable[tuple[str, type]]) -> Mapping[str, type]:
    """Index method classes, given with where they come from, by the id on their card.

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
def methods() -> Mapping[str, type]:
    """Every method class by id, ours first, then those of other packages."""
    return collect([*_built_in(), *_third_party()])


def method(name: str) -> type:
    """The class with this id.

    Raises:
        ConfigError: there is none.
    """
    known = methods()
    if name not in known:
        raise ConfigError(
            f"no method has the id {name!r}; known: {', '.join(known)}. A new one is registered by a line in its "
            f"family's __init__.py, or by an entry point in {ENTRY_POINT_GROUP!r}."
        )
    return known[name]


def cards() -> list[MethodCard]:
    """The cards of all methods."""
    return [cls.card for cls in methods().values()]  # type: ignore[attr-defined]


def _built_in() -> Iterator[tuple[str, type]]:
    for family in FAMILIES:
        yield from ((cls.__module__, cls) for cls in _method_classes(family))


def _method_classes(module: ModuleType) -> Iterator[type]:
    for value in vars(module).values():
        if isinstance(value, type) and (hasattr(value, "card") or issubclass(value, METHOD_BASES)):
            yield value


def _third_party() -> Iterator[tuple[str, type]]:
    for point in entry_points(group=ENTRY_POINT_GROUP):
        yield f"{point.value} (entry point {point.name})", point.load()
