"""Methods of other packages: entry points of the group "tightgrad.methods", each of which names a class.

Nothing here runs at `import tightgrad`. A package that is being imported, and imports tightgrad for its base classes,
would otherwise be asked for a class that it has not defined yet. An entry point that cannot be used is a `Problem`:
it names the distribution, and harms no other method. It is tried again at the next look-up, since the reason may have
been that its module was still being imported.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import EntryPoint, entry_points

from tightgrad.accumulate import Accumulate
from tightgrad.core.card import MethodCard
from tightgrad.core.errors import ConfigError
from tightgrad.core.protocols import Clipper, Codec, Feedback, Reducer

ENTRY_POINT_GROUP = "tightgrad.methods"
BASES: Mapping[str, type] = {
    "accumulate": Accumulate,
    "clip": Clipper,
    "codec": Codec,
    "reducer": Reducer,
    "feedback": Feedback,
}


@dataclass(frozen=True)
class Problem:
    """Why an entry point cannot be used.

    Args:
        text: one or two sentences that name the distribution, the entry point, the reason and what to do.
        error: what was raised.
    """

    text: str
    error: BaseException

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Outside:
    """What other packages bring: method classes by id, and the entry points that cannot be used."""

    methods: Mapping[str, type]
    problems: tuple[Problem, ...]


# Loaded classes are kept, since a class must stay the same object; what failed is tried again.
_loaded: dict[EntryPoint, type] = {}


def methods_from_outside(taken: Mapping[str, str]) -> Outside:
    """Load the method classes of all entry points, those that were loaded before excepted.

    Args:
        taken: ids that no other package may have, with the module that has each.
    """
    problems: list[Problem] = []
    claims: dict[str, dict[type, EntryPoint]] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            cls = _load(point)
            owner = taken.get(cls.card.id)  # type: ignore[attr-defined]
            if owner is not None:
                raise ConfigError(f"method id {cls.card.id!r} of {_where(point)} is taken by {owner}")  # type: ignore[attr-defined]
        except (Exception, SystemExit) as error:  # whatever another package raises while it is imported
            problems.append(_problem(point, error))
        else:
            claims.setdefault(cls.card.id, {}).setdefault(cls, point)  # type: ignore[attr-defined]
    found = {}
    for name, classes in claims.items():
        if len(classes) == 1:
            found[name] = next(iter(classes))
            continue
        # Which of them comes first depends on the order of sys.path, so that none of them can be meant.
        for point in classes.values():
            others = " and ".join(f"{_where(other)} of {_owner(other)}" for other in classes.values() if other != point)
            problems.append(
                _problem(point, ConfigError(f"method id {name!r} of {_where(point)} is claimed by {others} as well"))
            )
    return Outside(found, tuple(problems))


def _load(point: EntryPoint) -> type:
    if point not in _loaded:
        cls = point.load()
        if not isinstance(cls, type):
            raise ConfigError(f"{point.value} is {cls!r:.80} and no class; write the value as module:Class")
        check_method(cls)
        _loaded[point] = cls
    return _loaded[point]


def check_method(cls: type) -> None:
    """Raise `ConfigError` unless a class is a method as a plan needs it."""
    card = getattr(cls, "card", None)
    if not isinstance(card, MethodCard):
        raise ConfigError(f"{cls.__name__} has no `card`; give it a MethodCard")
    base = BASES[card.kind]
    if not issubclass(cls, base):
        raise ConfigError(
            f"{cls.__name__} has a card of kind {card.kind!r} and does not derive from {base.__name__}; derive it from "
            f"{base.__module__}.{base.__name__}"
        )
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(vars(cls)["__abstractmethods__"]))
        raise ConfigError(f"{cls.__name__} does not define {missing}; define it")
    if not is_dataclass(cls):
        raise ConfigError(
            f"{cls.__name__} is no dataclass, so that a plan cannot write it as JSON; add @dataclass(frozen=True)"
        )
    if cls.__hash__ is None:
        raise ConfigError(f"{cls.__name__} is a dataclass that can be changed; write @dataclass(frozen=True)")
    if "card" in {field.name for field in fields(cls)}:
        raise ConfigError(f"the card of {cls.__name__} is a setting; annotate it as ClassVar[MethodCard]")


def _problem(point: EntryPoint, error: BaseException) -> Problem:
    text = f"The entry point {point.name!r} of the distribution {_owner(point)} cannot be used: {_reason(error)} "
    name = point.dist.name if point.dist is not None else "it"
    return Problem(f"{text}Mend or uninstall {name}.", error)


def _reason(error: BaseException) -> str:
    text = str(error).strip().rstrip(".")
    return f"{text}." if isinstance(error, ConfigError) else f"{type(error).__name__}: {text}."


def _where(point: EntryPoint) -> str:
    return f"{point.value} (entry point {point.name})"


def _owner(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "unknown"
