"""Error feedback: v = g + e; send v; e = v - (what of v was sent).

    Seide et al. 2014, 1-Bit Stochastic Gradient Descent, Interspeech; Karimireddy et al. 2019, arXiv:1901.09847.

The residual is local: each rank keeps what it did not send itself. Over time, all that was put in equals all that
was sent plus the residual.
"""

from dataclasses import dataclass
from typing import ClassVar

from tightgrad.core.card import MethodCard
from tightgrad.core.protocols import Feedback, Reduce
from tightgrad.core.types import Grads, Reduced, Slot, State

RESIDUAL = Slot("residual", across_ranks="sum", like_parameter=True)


@dataclass(frozen=True)
class ErrorFeedback(Feedback):
    """A float32 residual for each compressed parameter on each rank."""

    card: ClassVar[MethodCard] = MethodCard(
        id="error_feedback",
        kind="feedback",
        summary="what was not sent is added to the next gradient",
        scope="tensor",
        reference="Seide et al. 2014; Karimireddy et al. 2019, arXiv:1901.09847",
        use_when="the codec is biased",
        avoid_when="memory for one float32 copy of the gradients is missing",
    )

    slots: ClassVar[tuple[Slot, ...]] = (RESIDUAL,)

    def reduce(self, grads: Grads, state: State, inner: Reduce) -> Reduced:
        """Compensate, reduce, remember. Residuals of parameters not in this call stay as they are."""
        residuals = state.get(RESIDUAL.name, {})
        compensated = {name: grad + residuals[name] if name in residuals else grad for name, grad in grads.items()}
        reduced = inner(compensated)
        left = {name: value - reduced.transmitted[name] for name, value in compensated.items()}
        return Reduced(reduced.total, reduced.transmitted, {**reduced.state, RESIDUAL.name: {**residuals, **left}})
