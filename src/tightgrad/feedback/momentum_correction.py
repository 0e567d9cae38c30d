"""Momentum correction: u = m u + g; v = v + u; send v; v = v - sent; u = 0 where something was sent.

    Lin et al. 2017, Deep Gradient Compression, arXiv:1712.01887.

Each rank accumulates velocity instead of gradient, so that what is sent late carries the momentum it would have
gathered (momentum correction), and what has been sent adds none to itself (momentum factor masking). The optimizer
must then be SGD without momentum: the delivered gradient is a velocity already. Local clipping is the plan's
`local_clip`, the density warm-up is the codec `density_warmup`.

Departs from the paper: where a value was rounded, what is left of it stays in v. A tensor that is sent in full keeps
its momentum, and so gets plain momentum SGD.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_decay
from tightgrad.core.protocols import Codec, Feedback, Reduce, Reducer
from tightgrad.core.types import Grads, Reduced, Slot, State
from tightgrad.feedback.error_feedback import RESIDUAL

VELOCITY = Slot("velocity", across_ranks="sum", like_parameter=True, dtype=torch.float32)


@dataclass(frozen=True)
class MomentumCorrection(Feedback):
    """Accumulates a velocity instead of the gradient, for each compressed parameter on each rank.

    Args:
        momentum: m, at least 0 and below 1.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.types import Reduced
        >>> def send_largest(grads):  # what top-k sends of a gradient on one rank
        ...     sent = {name: torch.where(grad.abs() == grad.abs().max(), grad, 0.0) for name, grad in grads.items()}
        ...     return Reduced(total=sent, transmitted=sent)
        >>> feedback, state = tg.feedback.MomentumCorrection(0.5), {}
        >>> for _ in range(3):
        ...     reduced = feedback.reduce_({"weight": torch.tensor([4.0, 2.0])}, state, send_largest)
        ...     state = reduced.state
        ...     print(reduced.total["weight"].tolist(), state["residual"]["weight"].tolist())
        [4.0, 0.0] [0.0, 2.0]
        [0.0, 5.0] [4.0, 0.0]
        [10.0, 0.0] [0.0, 2.0]
    """

    momentum: float = 0.9

    has_momentum: ClassVar[bool] = True
    card: ClassVar[MethodCard] = MethodCard(
        id="momentum_correction",
        kind="feedback",
        summary="velocity instead of gradient accumulates until it is sent, and is cleared where it was",
        scope="tensor",
        reference="Lin et al. 2017, arXiv:1712.01887",
        use_when="the codec is sparse, below about 1 %, and the optimizer is SGD without momentum of its own",
        avoid_when="the optimizer is Adam or has momentum; use error_feedback instead",
    )

    slots: ClassVar[tuple[Slot, ...]] = (RESIDUAL, VELOCITY)

    def __post_init__(self) -> None:
        check_decay("momentum", self.momentum)

    def refuses(self, codec: Codec | None, reducer: Reducer) -> str | None:
        """Return the reason if every entry is sent, since momentum is cleared where entries were sent; else None."""
        if codec is not None and codec.scope == "tensor":
            return None
        found = reducer.card.id if codec is None else codec.card.id
        return (
            f"momentum_correction clears momentum where entries were sent, and so needs a sparse codec, of scope "
            f"tensor, such as topk, not {found}; or take error_feedback with momentum in the optimizer"
        )

    def reduce_(self, grads: Grads, state: State, inner: Reduce) -> Reduced:
        """Accumulate velocity, reduce, and clear what was sent. Parameters not in this call keep both."""
        velocities, residuals = state.get(VELOCITY.name, {}), state.get(RESIDUAL.name, {})
        velocity = {
            name: grad + self.momentum * velocities[name] if name in velocities else grad
            for name, grad in grads.items()
        }
        value = {name: v + residuals[name] if name in residuals else v for name, v in velocity.items()}
        reduced = inner(value)
        left: Grads = {}
        kept: Grads = {}
        for name, sent in reduced.transmitted.items():
            left[name] = value[name] - sent
            mask = sent != 0
            kept[name] = torch.where(mask & ~mask.all(), 0.0, velocity[name])
        return Reduced(
            reduced.total,
            reduced.transmitted,
            {
                **reduced.state,
                RESIDUAL.name: {**residuals, **left},
                VELOCITY.name: {**velocities, **kept},
            },
        )
