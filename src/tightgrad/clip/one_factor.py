"""Clippers that multiply all gradients by one factor. The factor may also travel to the optimizer: see `fold`."""

import math
from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tightgrad.clip.dtensor import scale_
from tightgrad.core.protocols import Clipper, GradNorm
from tightgrad.core.types import Clipped, Grads, State

TORCH_EPS = 1e-6
FOLDS = ("auto", "on", "off")


def clip_coefficient(norm: Tensor, max_norm: float | Tensor, compat: str = "exact") -> Tensor:
    """Return min(1, max_norm / norm) as a scalar of the norm's dtype, with 0 / 0 = 1; NaN if the norm is NaN."""
    if isinstance(max_norm, float | int) and math.isinf(max_norm):
        return torch.ones_like(norm)
    if compat == "torch":
        return torch.clamp(max_norm / (norm + TORCH_EPS), max=1.0)
    return torch.where(norm <= max_norm, 1.0, max_norm / norm).to(norm.dtype)


class OneFactorClipper(Clipper):
    """Limits gradients by one factor for all of them."""

    @abstractmethod
    def factor(self, grads: Grads, norm: GradNorm, state: State) -> Clipped:
        """Find the factor; leave the gradients as they are. Collective when the gradients are sharded."""

    def clip_(self, grads: Grads, params: Mapping[str, nn.Parameter], norm: GradNorm, state: State) -> Clipped:
        """Scale all gradients by one factor."""
        clipped = self.factor(grads, norm, state)
        scale_(grads.values(), clipped.clip_coef)
        return clipped
