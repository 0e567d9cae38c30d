"""No compression: one float32 all-reduce of all gradients of the call.

The order of summation is that of the library below (a ring for gloo and NCCL), so with more than two ranks the
last bit may depend on how gradients are grouped.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tightgrad.core.card import MethodCard
from tightgrad.core.protocols import Codec, ReduceContext, Reducer
from tightgrad.core.types import Grads, Reduced, State


@dataclass(frozen=True)
class Dense(Reducer):
    """Sums gradients over ranks with one float32 all-reduce.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.clock import StageClock
        >>> from tightgrad.core.protocols import ReduceContext
        >>> from tightgrad.core.rng import StepRng
        >>> def total(collective):
        ...     context = ReduceContext(collective, StepRng(0, 0, collective.rank), StageClock())
        ...     grads = {"weight": torch.tensor([1.0, -2.0]) * (1 + collective.rank)}
        ...     return tg.reducers.Dense().reduce(grads, None, {}, context).total["weight"].tolist()
        >>> tg.collectives.run_threaded(2, total)
        [[3.0, -6.0], [3.0, -6.0]]
    """

    card: ClassVar[MethodCard] = MethodCard(
        id="dense",
        kind="reducer",
        summary="float32 all-reduce; 2 (W - 1) / W of the gradient leaves each rank",
        scope="element",
        unbiased=True,
        linear=True,
        reference="Patarasuk and Yuan 2009, Bandwidth optimal all-reduce algorithms for clusters of workstations",
        use_when="the link is fast enough",
        avoid_when="`tightgrad plan` says that the step waits for the link",
    )
    leaves_nothing: ClassVar[bool] = True

    def refuses(self, codec: Codec | None) -> str | None:
        """Return the reason if there is a codec, since dense sends no payload; else None."""
        return None if codec is None else "dense sends float32 and takes no codec; use two_shot or gather"

    def reduce(self, grads: Grads, codec: Codec | None, state: State, context: ReduceContext) -> Reduced:
        """Sum `grads` over ranks. Collective: every rank must call it with the same names and shapes."""
        if not grads:
            return Reduced({}, {})
        with context.clock("collective"):
            flat = [_as_real(grad) for grad in grads.values()]
            buffer = torch.cat(flat)
            context.collective.all_reduce_(buffer)
            pieces = buffer.split([real.numel() for real in flat])
        total = {name: _as(grad, piece) for (name, grad), piece in zip(grads.items(), pieces, strict=True)}
        return Reduced(total, dict(grads))


def _as_real(grad: Tensor) -> Tensor:
    """In one dimension; a complex gradient as pairs, so that it does not make complex numbers of all others."""
    return (torch.view_as_real(grad.resolve_conj()) if grad.is_complex() else grad).reshape(-1)


def _as(grad: Tensor, real: Tensor) -> Tensor:
    """Undo `_as_real`."""
    if not grad.is_complex():
        return real.view(grad.shape)
    return torch.view_as_complex(real.clone().view(*grad.shape, 2))  # a view needs an even place in the buffer
