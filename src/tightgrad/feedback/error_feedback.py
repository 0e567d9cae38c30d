"""Error feedback: v = g + e; send v; e = v - (what of v was sent).

    Seide et al. 2014, 1-Bit Stochastic Gradient Descent, Interspeech; Karimireddy et al. 2019, arXiv:1901.09847.

The residual is local: each rank keeps what it did not send itself. Over time, all that was put in equals all that
was sent plus the residual; with `residual="int8"` up to the rounding of the residual, which has no bias.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_choice
from tightgrad.core.protocols import Feedback, Reduce
from tightgrad.core.types import Grads, Reduced, Slot, State
from tightgrad.feedback.eight_bit import EightBit

RESIDUAL = Slot("residual", across_ranks="sum", like_parameter=True, dtype=torch.float32, role="residual")
EIGHT_BIT_RESIDUAL = Slot("residual", across_ranks="sum", like_parameter=True, storage=EightBit(), role="residual")
_SLOTS = {"float32": RESIDUAL, "int8": EIGHT_BIT_RESIDUAL}


@dataclass(frozen=True)
class ErrorFeedback(Feedback):
    """Keeps what was not sent of each compressed parameter on each rank, and adds it to the next gradient.

    Args:
        residual: "float32", or "int8" for a quarter of the memory.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.types import Reduced
        >>> def send_largest(grads):  # what top-k sends of a gradient on one rank
        ...     sent = {name: torch.where(grad.abs() == grad.abs().max(), grad, 0.0) for name, grad in grads.items()}
        ...     return Reduced(total=sent, transmitted=sent)
        >>> feedback, state = tg.ErrorFeedback(), {}
        >>> for _ in range(3):
        ...     reduced = feedback.reduce_({"weight": torch.tensor([3.0, 2.0])}, state, send_largest)
        ...     state = reduced.state
        ...     print(reduced.total["weight"].tolist(), state["residual"]["weight"].tolist())
        [3.0, 0.0] [0.0, 2.0]
        [0.0, 4.0] [3.0, 0.0]
        [6.0, 0.0] [0.0, 2.0]
    """

    residual: str = "float32"

    card: ClassVar[MethodCard] = MethodCard(
        id="error_feedback",
        kind="feedback",
        summary="what was not sent is added to the next gradient",
        scope="tensor",
        reference="Seide et al. 2014; Karimireddy et al. 2019, arXiv:1901.09847",
        use_when="the codec is biased and memory has room for a float32 copy of the gradients (a quarter with int8)",
        avoid_when="the codec errs by more than its input (QSGD of few levels, unbiased sparsifiers): residuals grow",
    )

    def __post_init__(self) -> None:
        check_choice("residual", self.residual, _SLOTS)
        object.__setattr__(self, "slots", (_SLOTS[self.residual],))

    def reduce_(self, grads: Grads, state: State, inner: Reduce) -> Reduced:
        """Add the residuals, reduce, and keep what was not sent in the gradients' own memory. Residuals of parameters
        not in this call stay as they are.
        """
        residuals = state.get(self._slot.name, {})
        values = {name: grad.contiguous() for name, grad in grads.items()}
        for name, value in values.items():
            if name in residuals:
                value.add_(self._slot.values(residuals[name]).view(value.shape))
        reduced = inner(values)
        left = {name: self._slot.hold(value) for name, value in reduced.untransmitted_(values).items()}
        return Reduced(reduced.total, reduced.transmitted, {**reduced.state, self._slot.name: {**residuals, **left}})

    @property
    def _slot(self) -> Slot:
        return _SLOTS[self.residual]
