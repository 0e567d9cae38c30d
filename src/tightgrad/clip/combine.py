"""Clippers made of clippers: one after the other, or each for its own parameters."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import nn

from tightgrad.core.card import MethodCard
from tightgrad.core.errors import ConfigError
from tightgrad.core.protocols import Clipper, GradNorm
from tightgrad.core.types import Clipped, Grads, Slot, State


def _own_slots(owner: str, clipper: Clipper) -> tuple[Slot, ...]:
    return tuple(replace(slot, name=f"{owner}/{slot.name}") for slot in clipper.slots)


def _own_state(owner: str, clipper: Clipper, state: State) -> State:
    return {slot.name: state.get(f"{owner}/{slot.name}", {}) for slot in clipper.slots}


def _named_state(owner: str, state: State) -> State:
    return {f"{owner}/{slot}": values for slot, values in state.items()}


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
        slots = [slot for index, clipper in enumerate(self.clippers) for slot in _own_slots(str(index), clipper)]
        object.__setattr__(self, "slots", tuple(slots))

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
        groups = self._clippers()
        slots = [slot for owner, clipper in groups.items() if clipper for slot in _own_slots(owner, clipper)]
        object.__setattr__(self, "slots", tuple(slots))

    def _clippers(self) -> dict[str, Clipper | None]:
        return {**dict(self.rules), "default": self.default}

    def _group(self, name: str) -> str:
        return next((pattern for pattern, _ in self.rules if fnmatchcase(name, pattern)), "default")

    def clip_(self, grads: Grads, params: Mapping[str, nn.Parameter], norm: GradNorm, state: State) -> Clipped:
        """Clip each group; the norm is the one over all parameters."""
        before = norm(list(grads.values()))
        members: dict[str, Grads] = {}
        for name, grad in grads.items():
            members.setdefault(self._group(name), {})[name] = grad
        update: dict[str, Mapping[str, torch.Tensor]] = {}
        for owner, clipper in self._clippers().items():
            if clipper is not None and owner in members:
                clipped = clipper.clip_(members[owner], params, norm, _own_state(owner, clipper, state))
                update.update(_named_state(owner, clipped.state))
        after = norm(list(grads.values()))
        return Clipped(before, torch.where(before == 0, 1.0, after / before), update)
