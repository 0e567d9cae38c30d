"""Per-tensor norm clipping: g_i <- g_i * min(1, max_norm / ||g_i||), a norm and a factor for each parameter.

    Pascanu, Mikolov, Bengio 2013, On the difficulty of training recurrent neural networks, arXiv:1211.5063.

Their norm clipping for each tensor alone (Keras calls it `clipnorm`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tightgrad.clip.dtensor import scale_each_
from tightgrad.clip.norm import exact_norm, exact_norms
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_number
from tightgrad.core.protocols import Clipper, GradNorm
from tightgrad.core.types import Clipped, Grads, State


def clip_each_(grads: Grads, norm: GradNorm, bounds: Callable[[Tensor], Tensor | float]) -> Clipped:
    """Limit the norm of each gradient, in place.

    Args:
        grads: gradients by parameter name.
        norm: measures the norm over all of them.
        bounds: gives the largest norms that pass, for the 2-norms of the gradients: float64, shape (len(grads),).
    """
    values = list(grads.values())
    before = norm(values)
    if not values:
        return Clipped(before, torch.ones_like(before))
    norms = exact_norms(values)
    limits = bounds(norms)
    return Clipped(
        before, scale_tensors_(values, norms, torch.where(norms <= limits, 1.0, limits / norms)).to(before.dtype)
    )


def scale_tensors_(tensors: Sequence[Tensor], norms: Tensor, coefficients: Tensor) -> Tensor:
    """Multiply each tensor by its coefficient, in place.

    Args:
        tensors: gradients, each storage once.
        norms: their 2-norms, shape (len(tensors),), float64.
        coefficients: their factors, of the same shape.

    Returns:
        The norm over all tensors afterwards divided by the norm before, with 0 / 0 = 1: a scalar of the norms' dtype.
    """
    scale_each_(tensors, coefficients)
    before = exact_norm([norms])
    after = exact_norm([torch.where(norms == 0, norms, norms * coefficients)])
    return torch.where(before == 0, 1.0, after / before)


@dataclass(frozen=True)
class PerTensorNorm(Clipper):
    """Limits the norm of each parameter's gradient by itself.

    Args:
        max_norm: the largest 2-norm of one gradient that passes, above 0.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> grads = {"weight": torch.tensor([3.0, 4.0]), "bias": torch.tensor([0.5])}
        >>> clipped = tg.clip.PerTensorNorm(2.5).clip_(grads, {}, tg.get_total_norm, {})
        >>> grads
        {'weight': tensor([1.5000, 2.0000]), 'bias': tensor([0.5000])}
    """

    max_norm: float

    card: ClassVar[MethodCard] = MethodCard(
        id="per_tensor_norm",
        kind="clip",
        summary="a norm and a factor for each parameter",
        scope="tensor",
        reference="Pascanu, Mikolov, Bengio 2013, arXiv:1211.5063, for each tensor alone",
        use_when="a single layer explodes and the others should not be scaled down with it",
        avoid_when="the direction of the whole gradient matters; clip the global norm instead",
    )

    def __post_init__(self) -> None:
        check_number("max_norm", self.max_norm, above=0.0)

    def clip_(self, grads: Grads, params: Mapping[str, nn.Parameter], norm: GradNorm, state: State) -> Clipped:
        """Scale each gradient by its own factor."""
        return clip_each_(grads, norm, lambda norms: self.max_norm)
