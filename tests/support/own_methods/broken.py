"""The package's methods, each with one fault that its author might make."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from half import LEFT, AtMost, Everyone, Half, Later
from torch import Tensor, nn

from tightgrad.core.protocols import Codec, GradNorm, Reduce, ReduceContext
from tightgrad.core.types import Clipped, Grads, GradSpec, Payload, Reduced, Slot, State


@dataclass(frozen=True)
class Uncut(Half):
    """Says that a tensor may be cut anywhere."""

    card = replace(Half.card, id="uncut")
    granularity: ClassVar[int] = 1  # type: ignore[misc]


@dataclass(frozen=True)
class Shared(Half):
    """Sends a view of the gradient."""

    card = replace(Half.card, id="shared")

    def encode(self, flat: Tensor, spec: GradSpec, generator: torch.Generator) -> Payload:
        return Payload((flat[::2],), spec)


@dataclass(frozen=True)
class Repeated(Half):
    """Decodes each entry twice, and so invents gradients where there were none."""

    card = replace(Half.card, id="repeated")

    def decode(self, payload: Payload) -> Tensor:
        half = super().decode(payload)
        return half + torch.nn.functional.pad(half, (1, 0))[:-1]


@dataclass(frozen=True)
class Trusting(Half):
    """Does not look at what it received."""

    card = replace(Half.card, id="trusting")

    def decode(self, payload: Payload) -> Tensor:
        flat = torch.zeros(payload.spec.numel)
        flat[::2] = payload.tensors[0]
        return flat


@dataclass(frozen=True)
class Boasting(Half):
    """Claims more than it keeps."""

    card = replace(Half.card, id="boasting")

    def contraction(self, numel: int) -> float:
        return 0.9


@dataclass(frozen=True)
class Unregistered(Half):
    """Has no entry point."""

    card = replace(Half.card, id="unregistered")


@dataclass(frozen=True)
class Loose(AtMost):
    """Clips to a norm a little above the bound."""

    card = replace(AtMost.card, id="loose")

    def clip_(self, grads: Grads, params: Mapping[str, nn.Parameter], norm: GradNorm, state: State) -> Clipped:
        return AtMost(self.max_norm * 1.001).clip_(grads, params, norm, state)


@dataclass(frozen=True)
class Averaging(Everyone):
    """Delivers the mean, and says that it transmitted what went in."""

    card = replace(Everyone.card, id="averaging")

    def reduce(self, grads: Grads, codec: Codec | None, state: State, context: ReduceContext) -> Reduced:
        reduced = super().reduce(grads, codec, state, context)
        mean = {name: total / context.collective.world_size for name, total in reduced.total.items()}
        return replace(reduced, total=mean)


@dataclass(frozen=True)
class Forgetful(Later):
    """Keeps half of what was not sent."""

    card = replace(Later.card, id="forgetful")

    def reduce_(self, grads: Grads, state: State, inner: Reduce) -> Reduced:
        reduced = super().reduce_(grads, state, inner)
        left = {name: 0.5 * value for name, value in reduced.state[LEFT.name].items()}
        return replace(reduced, state={LEFT.name: left})


@dataclass(frozen=True)
class Roleless(Later):
    """Does not say that its slot holds residuals."""

    card = replace(Later.card, id="roleless")
    slots: ClassVar[tuple[Slot, ...]] = (replace(LEFT, role=None),)
