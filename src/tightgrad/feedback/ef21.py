"""EF21: each rank's estimate h_r follows its gradient, h_r = h_r + C(g_r - h_r), and what is delivered is sum_r h_r.

    Richtarik, Sokolov, Fatkhullin 2021, EF21, arXiv:2106.05203.

What is compressed is the change of the gradient, which shrinks where training settles, so that with full gradients it
converges at the rate of no compression. Every rank keeps the sum of the estimates, and updates it from the totals
alone.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from tightgrad.core.card import MethodCard
from tightgrad.core.protocols import Feedback, Reduce
from tightgrad.core.types import Grads, Reduced, Slot, State

ESTIMATE = Slot("ef21_estimate", across_ranks="sum", like_parameter=True, dtype=torch.float32)
TOTAL = Slot("ef21_total", across_ranks="equal", like_parameter=True, dtype=torch.float32)


@dataclass(frozen=True)
class EF21(Feedback):
    """Keeps an estimate for each compressed parameter on each rank, and sends how the gradient differs from it.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.types import Reduced
        >>> def send_largest(grads):  # what top-k sends of a gradient on one rank
        ...     sent = {name: torch.where(grad.abs() == grad.abs().max(), grad, 0.0) for name, grad in grads.items()}
        ...     return Reduced(total=sent, transmitted=sent)
        >>> feedback, state = tg.feedback.EF21(), {}
        >>> for _ in range(3):
        ...     reduced = feedback.reduce_({"weight": torch.tensor([3.0, 2.0, 1.0])}, state, send_largest)
        ...     state = reduced.state
        ...     print(reduced.total["weight"].tolist())
        [3.0, 0.0, 0.0]
        [3.0, 2.0, 0.0]
        [3.0, 2.0, 1.0]
    """

    card: ClassVar[MethodCard] = MethodCard(
        id="ef21",
        kind="feedback",
        summary="each rank sends the compressed change of its gradient; the sum of all changes is delivered",
        scope="tensor",
        reference="Richtarik et al. 2021, arXiv:2106.05203",
        use_when="gradients change slowly from step to step, as with large batches or full gradients",
        avoid_when="batches are small: noise changes all of the gradient at every step; use error_feedback instead",
    )

    slots: ClassVar[tuple[Slot, ...]] = (ESTIMATE, TOTAL)
    works_on_shards: ClassVar[bool] = False  # `TOTAL` is of whole sums

    def reduce_(self, grads: Grads, state: State, inner: Reduce) -> Reduced:
        """Send how gradients differ from their estimates, and update these. Parameters not in this call keep theirs."""
        estimates, totals = state.get(ESTIMATE.name, {}), state.get(TOTAL.name, {})
        change = {name: grad - estimates[name] if name in estimates else grad for name, grad in grads.items()}
        reduced = inner(change)
        mine = {n: sent + estimates[n] if n in estimates else sent.clone() for n, sent in reduced.transmitted.items()}
        total = {n: moved + totals[n] if n in totals else moved.clone() for n, moved in reduced.total.items()}
        # The caller may write into what is delivered, never into what is remembered.
        remembered = {name: tensor.clone() for name, tensor in total.items()}
        return Reduced(
            total,
            dict(mine),
            {**reduced.state, ESTIMATE.name: {**estimates, **mine}, TOTAL.name: {**totals, **remembered}},
        )
