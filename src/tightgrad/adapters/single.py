"""A plain module: gradients lie where autograd puts them."""

from collections.abc import Iterable, Mapping, Set
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from tightgrad.adapters.parts.forward import has_synced_layers
from tightgrad.adapters.parts.grads import copy_grads, each_grad, put_grads, scale_grads_
from tightgrad.adapters.parts.names import trainable_parameters
from tightgrad.core.protocols import Collective
from tightgrad.core.types import Grads


class SingleAdapter:
    """A module without a wrapper; with a collective of several ranks, each trains a replica of its own.

    Args:
        module: that is trained.
        collective: the data-parallel ranks.
        only: identities of the parameters that are trained; None trains all that require gradients.
    """

    reduces = False
    every_rank_runs = False
    moves_gradients = False
    counts_writes = True
    holds_back = False
    remembered_shapes: Mapping[str, tuple[int, ...]] | None = None
    divisor = 1

    def __init__(self, module: nn.Module, collective: Collective, only: Set[int] | None = None) -> None:
        self.collective = collective
        self.parameters = trainable_parameters(module, only)
        self.waits_in_forward = has_synced_layers(module)

    def connect(self) -> None:
        """Do nothing: there is no wrapper."""

    def begin_window(self) -> None:
        """Do nothing: there is no wrapper."""

    def micro_batch(self, index: int, count: int) -> AbstractContextManager[None]:
        """Nothing to hold: nothing is synchronised."""
        return nullcontext()

    def leaves(self) -> Iterable[Tensor]:
        """Return the parameters of the module."""
        return self.parameters.values()

    def gradients(self) -> Iterable[tuple[str, Tensor | None]]:
        """Return `parameter.grad` of every parameter."""
        return each_grad(self.parameters)

    def accumulated(self) -> Grads:
        """Return copies of every `parameter.grad`."""
        return copy_grads(self.parameters)

    def restore_accumulated(self, grads: Grads) -> None:
        """Put the gradients back as `parameter.grad`."""
        put_grads(self.parameters, grads)

    def scale_accumulated_(self, factor: float) -> None:
        """Multiply every `parameter.grad` in place."""
        scale_grads_(self.parameters, factor)

    def leave_window(self) -> None:
        """Nothing is left of a forward."""

    def release(self) -> None:
        """Do nothing: the module was not changed."""

    def sent_nbytes(self) -> int:
        """A plain module sends nothing."""
        return 0
