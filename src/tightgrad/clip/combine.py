"""Clippers made of clippers: one after the other, or each for its own parameters."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from torch import nn

from tightgrad.core.card import MethodCard
from tightgrad.core.clipper import Held
from tightgrad.core.errors import ConfigError, UsageError
from tightgrad.core.protocols import Clipper, GradNorm
from tightgrad.core.types import Clipped, Grads, Slot, State


def _own_slots(owner: str, clipper: Clipper) -> tuple[Slot, ...]:
    return tuple(replace(slot, name=f"{owner}/{slot.name}") for slot in clipper.slots)


def _own_state(owner: str, clipper: Clipper, state: State) -> State:
    return {slot.name: state.get(f"{owner}/{slot.name}", {}) for slot in clipper.slots}


def _named_state(owner: str, state: State) -> State:
    return {f"{owner}/{slot}": values for slot, values in state.items()}


def _with_slots_of(clipper: Clipper, parts: Mapping[str, Clipper | None]) -> None:
    """Let a clipper remember what its parts do."""
    slots = [slot for owner, part in parts.items() if part is not None for slot in _own_slots(owner, part)]
    object.__setattr__(clipper, "slots", tuple(slots))


def _clip_groups_(
    groups: Mapping[str, tuple[Clipper | None, Grads]],
    grads: Grads,
    params: Mapping[str, nn.Parameter],
    norm: GradNorm,
    state: State,
) -> Clipped:
    """Clip each group of `grads` with its own clipper, or not; the norm is the one over all of them."""
    before = norm(list(grads.values()))
    update: dict[str, Mapping[str, torch.Tensor]] = {}
    found: dict[str, Clipped] = {}
    for owner, (clipper, members) in groups.items():
        own = norm(list(members.values()))
        found[owner] = Clipped(own, torch.ones_like(own))
        if clipper is not None and members:
            clipped = clipper.clip_(members, params, norm, _own_state(owner, clipper, state))
            found[owner] = Clipped(own, clipped.clip_coef)
            update.update(_named_state(owner, clipped.state))
    after = norm(list(grads.values()))
    return Clipped(before, torch.where(before == 0, 1.0, after / before), update, found)


@dataclass(frozen=True)
class Chain(Clipper):
    """Applies several clippers in order.

    Args:
        clippers: at least one.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> grads = {"weight": torch.tensor([30.0, 4.0])}
        >>> clipper = tg.clip.Chain((tg.clip.Value(3.0), tg.clip.GlobalNorm(1.0)))
        >>> clipped = clipper.clip_(grads, {}, tg.get_total_norm, {})
        >>> [round(value, 4) for value in grads["weight"].tolist()]
        [0.7071, 0.7071]
    """

    clippers: tuple[Clipper, ...]

    card: ClassVar[MethodCard] = MethodCard(
        id="chain",
        kind="clip",
        summary="several clippers in order",
        scope="model",
        reference="optax.chain",
        use_when="entries or units should be limited before a norm is",
        avoid_when="one clipper is enough",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "clippers", tuple(self.clippers))
        if not self.clippers or not all(isinstance(clipper, Clipper) for clipper in self.clippers):
            raise ConfigError(f"clippers={self.clippers!r} must be at least one clipper.")
        _with_slots_of(self, {str(index): clipper for index, clipper in enumerate(self.clippers)})

    def for_optimizers(self, held: Held) -> "Chain":
        """Return the chain of what its clippers are with these optimizers."""
        return Chain(tuple(clipper.for_optimizers(held) for clipper in self.clippers))

    def clip_(self, grads: Grads, params: Mapping[str, nn.Parameter], norm: GradNorm, state: State) -> Clipped:
        """Apply the clippers in order; the norm is the one before the first."""
        before = norm(list(grads.values()))
        coefficient = torch.ones_like(before)
        update: dict[str, Mapping[str, torch.Tensor]] = {}
        for index, clipper in enumerate(self.clippers):
            clipped = clipper.clip_(grads, params, norm, _own_state(str(index), clipper, state))
            coefficient = coefficient * clipped.clip_coef
            update.update(_named_state(str(index), clipped.state))
        return Clipped(before, coefficient, update)


@dataclass(frozen=True)
class ByName(Clipper):
    """Clips each group of parameters with its own clipper and its own norm.

    Args:
        rules: pairs of a name pattern ("embedding.*") and a clipper (None leaves the group alone); the first pattern
            that matches a name decides.
        default: the clipper of all other parameters, as one group; None leaves them alone.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> grads = {"head.weight": torch.tensor([3.0, 4.0]), "body.weight": torch.tensor([6.0, 8.0])}
        >>> clipper = tg.clip.ByName((("head.*", None),), default=tg.clip.GlobalNorm(5.0))
        >>> clipped = clipper.clip_(grads, {}, tg.get_total_norm, {})
        >>> grads
        {'head.weight': tensor([3., 4.]), 'body.weight': tensor([3., 4.])}
    """

    rules: tuple[tuple[str, Clipper | None], ...]
    default: Clipper | None = None

    card: ClassVar[MethodCard] = MethodCard(
        id="by_name",
        kind="clip",
        summary="each group of parameters with its own clipper and its own norm",
        scope="model",
        reference="TightGrad",
        use_when="embeddings, routers or heads need another bound than the rest",
        avoid_when="the direction of the whole gradient matters; clip the global norm instead",
    )

    def __post_init__(self) -> None:
        rules: tuple[object, ...] = tuple(tuple(rule) for rule in self.rules)
        for rule in rules:
            match rule:
                case (str(), Clipper() | None):
                    pass
                case _:
                    raise ConfigError(f"rule {rule!r} must be a name pattern and a clipper (or None).")
        object.__setattr__(self, "rules", rules)
        patterns = [pattern for pattern, _ in self.rules]
        if len(set(patterns)) < len(patterns):
            raise ConfigError(f"rules={patterns!r} names a pattern twice; the second would never apply.")
        if not isinstance(self.default, Clipper | None):
            raise ConfigError(f"default={self.default!r} must be a clipper or None.")
        _with_slots_of(self, self._clippers())

    def for_optimizers(self, held: Held) -> "ByName":
        """Return the same groups with what their clippers are with these optimizers."""
        rules = tuple((pattern, clipper and clipper.for_optimizers(held)) for pattern, clipper in self.rules)
        return ByName(rules, self.default and self.default.for_optimizers(held))

    def _clippers(self) -> dict[str, Clipper | None]:
        return {**dict(self.rules), "default": self.default}

    def _group(self, name: str) -> str:
        return next((pattern for pattern, _ in self.rules if fnmatchcase(name, pattern)), "default")

    def clip_(self, grads: Grads, params: Mapping[str, nn.Parameter], norm: GradNorm, state: State) -> Clipped:
        """Clip each group; the norm is the one over all parameters."""
        members: dict[str, Grads] = {}
        for name, grad in grads.items():
            members.setdefault(self._group(name), {})[name] = grad
        groups = {owner: (clipper, members[owner]) for owner, clipper in self._clippers().items() if owner in members}
        return _clip_groups_(groups, grads, params, norm, state)


@dataclass(frozen=True)
class PerOptimizer(Clipper):
    """Clips what each of several optimizers steps with its own clipper and its own norm.

    `attach` tells it which parameters each optimizer holds, and so does `for_optimizers` where it is called by hand.
    Gradients that no optimizer holds are left alone.

    Args:
        clippers: one for each optimizer, in the order in which `attach` is given them; None leaves that one's gradients
            alone. Muon needs a bound too: its momentum remembers a spike, though its step does not depend on scale.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> grads = {"matrix": torch.tensor([[30.0, 40.0]]), "bias": torch.tensor([3.0, 4.0])}
        >>> clipper = tg.clip.PerOptimizer((tg.clip.GlobalNorm(5.0), tg.clip.GlobalNorm(1.0)))
        >>> clipper = clipper.for_optimizers(lambda: [["matrix"], ["bias"]])
        >>> clipped = clipper.clip_(grads, {}, tg.get_total_norm, {})
        >>> {name: grad.norm().round(decimals=3).item() for name, grad in grads.items()}
        {'matrix': 5.0, 'bias': 1.0}
        >>> [round(float(group.clip_coef), 4) for group in clipped.groups.values()]
        [0.1, 0.2]
    """

    clippers: tuple[Clipper | None, ...]

    card: ClassVar[MethodCard] = MethodCard(
        id="per_optimizer",
        kind="clip",
        summary="each optimizer's gradients with their own clipper and their own norm",
        scope="model",
        reference="TightGrad; measured in benchmarks/README.md",
        use_when="Muon steps the matrices and AdamW the rest, and one norm would let either set the other's factor",
        avoid_when="there is one optimizer; give its clipper alone",
    )

    _told: ClassVar[tuple[Held, ...]] = ()
    """What each optimizer holds, once it is known."""

    def __post_init__(self) -> None:
        given: Any = self.clippers
        is_list = isinstance(given, tuple | list) and bool(given)
        if not is_list or not all(isinstance(part, Clipper | None) for part in given):
            raise ConfigError(
                f"clippers={given!r} must be a clipper (or None) for each optimizer, in the order in which attach is "
                "given them, such as PerOptimizer((GlobalNorm(1.0), GlobalNorm(0.5)))."
            )
        object.__setattr__(self, "clippers", tuple(given))
        _with_slots_of(self, {str(index): clipper for index, clipper in enumerate(self.clippers)})

    def for_optimizers(self, held: Held) -> "PerOptimizer":
        """Return this clipper with its groups.

        Raises:
            ConfigError: there are more or fewer optimizers than clippers, or a parameter has two.
        """
        groups = held()
        if len(groups) != len(self.clippers):
            raise ConfigError(
                f"PerOptimizer has {len(self.clippers)} clippers, and the number of optimizers is {len(groups)}; give "
                "one for each, in the order in which attach is given them, and None where gradients are not clipped."
            )
        names = [name for group in groups for name in group]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ConfigError(f"{twice[0]!r} is held by two optimizers, so it would be clipped twice; give it to one.")
        made = PerOptimizer(tuple(clipper and clipper.for_optimizers(held) for clipper in self.clippers))
        object.__setattr__(made, "_told", (held,))
        return made

    def clip_(self, grads: Grads, params: Mapping[str, nn.Parameter], norm: GradNorm, state: State) -> Clipped:
        """Clip each optimizer's gradients; the norm is the one over all.

        Raises:
            UsageError: it does not know what each optimizer holds.
        """
        if not self._told:
            raise UsageError(
                "PerOptimizer does not know which parameters each optimizer holds; give it in a plan to "
                "attach(model, [muon, adamw], plan), or write clipper.for_optimizers(lambda: [names, other_names])."
            )
        groups = {}
        for index, (clipper, names) in enumerate(zip(self.clippers, map(set, self._told[0]()), strict=True)):
            groups[str(index)] = clipper, {name: grad for name, grad in grads.items() if name in names}
        return _clip_groups_(groups, grads, params, norm, state)
