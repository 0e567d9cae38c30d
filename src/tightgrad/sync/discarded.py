"""Gradients that a communication hook delivered and no optimizer took: what feedback counts as sent is lost then."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tightgrad.core.notices import warn


class DiscardedSteps:
    """Looks, from one backward to the next, whether parameters have changed in between. Warns once.

    Args:
        parameters: by name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = list(parameters.values())
        self._versions: list[int] | None = None
        self._value: Tensor | None = None
        self._has_warned = False

    def delivered(self, watched: nn.Parameter) -> None:
        """Take note of the parameters after a backward whose residuals were kept.

        Args:
            watched: a small parameter, of which a copy is kept: optimizers that write to `parameter.data` leave no
                other trace.
        """
        if not self._has_warned:
            self._versions = [parameter._version for parameter in self._parameters]
            self._value = watched.detach().clone()

    def cleared(self, watched: nn.Parameter) -> None:
        """Warn if all parameters are as they were; to be called when gradients have been cleared since."""
        versions, self._versions = self._versions, None
        if versions is None or versions != [parameter._version for parameter in self._parameters]:
            return
        if self._value is None or not torch.equal(watched.detach(), self._value):
            return
        self._has_warned = True
        self._value = None
        warn(
            "gradients that the communication hook had delivered were cleared before any optimizer step, and error "
            "feedback counts them as sent: they are lost for good. Where the backward of another network passes "
            "through this one, freeze it meanwhile (requires_grad_(False)) or call model.module there; where the loop "
            "skips steps on purpose, use attach(), which then keeps its residuals.",
            stacklevel=2,
        )
