"""What limits gradients, and the norm that it is given."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import ClassVar, Protocol, TypeAlias

from torch import Tensor, nn

from tightgrad.core.card import MethodCard
from tightgrad.core.types import Clipped, Grads, Slot, State


class GradNorm(Protocol):
    """The only code that knows how a gradient is placed."""

    def __call__(self, tensors: Sequence[Tensor], norm_type: float = 2.0) -> Tensor:
        """The norm over all elements of all tensors: a scalar, the same on every rank; in the pipeline float64."""


Held: TypeAlias = Callable[[], Sequence[Collection[str]]]
"""Tells at any time which parameters, by name, each optimizer holds."""


class Clipper(ABC):
    """Limits gradients in place."""

    card: ClassVar[MethodCard]
    slots: ClassVar[tuple[Slot, ...]] = ()
    fold: str = "off"
    """Whether what `factor` gives may travel in a fused optimizer's step: "auto", "on" or "off"."""

    def for_optimizers(self, held: Held) -> "Clipper":
        """Return the clipper as it runs with these optimizers. Called once, by `attach`; most need not know them.

        Raises:
            ConfigError: it was made for another number of optimizers.
        """
        return self

    def factor(self, grads: Grads, norm: GradNorm, state: State) -> Clipped | None:
        """Return the one factor for all gradients, which are left as they are; None if there is no such factor, and
        `clip_` is to be called. Collective when the gradients are sharded: every rank must call it.
        """
        return None

    @abstractmethod
    def clip_(self, grads: Grads, params: Mapping[str, nn.Parameter], norm: GradNorm, state: State) -> Clipped:
        """Clip `grads` in place. Collective when the gradients are sharded: every rank must call it."""
