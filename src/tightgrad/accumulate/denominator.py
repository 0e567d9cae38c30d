"""Compares the weight of a micro-batch with what its loss was divided by, where autograd knows that.

Torch's cross entropy keeps the sum of the weights of the labels that it has averaged over: without those that it
ignores, and with class weights, which no batch shows. Weights have to be in proportion to it.
"""

from typing import Any

import torch
from torch import Tensor

from tightgrad.core.notices import warn

LOOKS = 16  # micro-batches that are looked at: each look waits for the device
TOLERANCE = 1e-3
_MEAN = 1  # torch's number for reduction="mean"
_STACK = 6  # the user's line, above backward() and what it calls


Seen = tuple[float, float]
"""What a loss was averaged over, and the weight of its micro-batch."""


class DenominatorCheck:
    """Looks at the first micro-batches after `attach`, compares those of one window, and warns once."""

    def __init__(self) -> None:
        self._looks = LOOKS

    def compare(self, loss: Tensor, weight: float, first: Seen | None) -> Seen | None:
        """Compare one micro-batch with the first of its window.

        Args:
            loss: the mean loss of the micro-batch.
            weight: what the micro-batch counts, above 0.
            first: what was returned for the micro-batch before; None at the first.

        Returns:
            What the next micro-batch of this window is to be compared with.
        """
        if not self._looks:
            return first
        divisor = mean_divisor(loss)
        if divisor is None:
            return first
        self._looks -= 1
        number = float(divisor)
        if first is None:
            return number, weight
        first_number, first_weight = first
        here, there = number * first_weight, first_number * weight
        tolerance = max(TOLERANCE, 4 * torch.finfo(divisor.dtype).eps)
        if abs(here - there) > tolerance * max(here, there):
            self._looks = 0
            warn(
                f"the loss of one micro-batch was averaged over {first_number:.6g} and its weight is "
                f"{first_weight:.6g}; that of another over {number:.6g}, and its weight is {weight:.6g}. Weights have "
                "to be in proportion to what losses are averaged over, or the gradient is not that of one big batch. "
                'Pass attach(..., weight=...): `lambda batch: (batch["labels"] != -100).sum()` for cross entropy, '
                '`(batch["labels"][:, 1:] != -100).sum()` where the model shifts its labels, '
                '`class_weights[batch["labels"]].sum()` with class weights.',
                _STACK,
            )
        return first


def mean_divisor(loss: Tensor) -> Tensor | None:
    """Return what torch's cross entropy has divided by to get this loss; None for other losses, and for sums."""
    function: Any = loss.grad_fn
    # NllLossBackward0 and NllLoss2DBackward0, which cross_entropy without label smoothing ends with. Their saved values
    # have had these names since torch 1.9; a torch without them is not looked at.
    if getattr(function, "_saved_reduction", None) != _MEAN or not hasattr(function, "_raw_saved_total_weight"):
        return None
    try:
        # Refused where hooks are set already: a look would run a checkpointed forward again.
        function._raw_saved_total_weight.register_hooks(_as_it_is, _as_it_is)
        divisor = function._saved_total_weight
    except RuntimeError:
        return None
    return divisor.detach() if isinstance(divisor, Tensor) else None


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
