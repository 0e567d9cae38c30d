"""Accumulation: G = (1 / N) sum over ranks and micro-batches of grad L_rk, with N the weight of the whole window.

    Ott et al. 2018, Scaling Neural Machine Translation, arXiv:1806.00187 (delayed updates).

Departs from the common loop, which divides each loss by the number of micro-batches: that is right only if all
micro-batches weigh the same and the last window is full.
"""

from dataclasses import dataclass
from typing import ClassVar

from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_choice, check_integer

LOSS_REDUCTIONS = ("mean", "sum")


@dataclass(frozen=True)
class Accumulate:
    """One optimizer step from several micro-batches.

    Args:
        micro_batches: K, batches of the loader that make one window on each rank, at least 1. The last window of a
            loader may hold fewer; its gradient is exact all the same.
        loss_reduction: "mean" if the loss given to `backward` is an average over its micro-batch's weight, "sum" if
            it is a sum.
    """

    micro_batches: int = 1
    loss_reduction: str = "mean"

    card: ClassVar[MethodCard] = MethodCard(
        id="accumulate",
        kind="accumulate",
        summary="the gradient of one big batch from micro-batches of any weight",
        scope="model",
        unbiased=True,
        linear=True,
        reference="Ott et al. 2018, arXiv:1806.00187",
        use_when="the batch that training wants does not fit into memory, or the link is slow",
        avoid_when="the batch fits and the link is fast: it only makes steps rarer",
    )

    def __post_init__(self) -> None:
        check_integer("micro_batches", self.micro_batches, low=1)
        check_choice("loss_reduction", self.loss_reduction, LOSS_REDUCTIONS)

    def loss_factor(self, weight: float, total_weight: float) -> float:
        """What a micro-batch's loss is multiplied by before its backward, so that gradients sum to G."""
        return (weight if self.loss_reduction == "mean" else 1.0) / total_weight
