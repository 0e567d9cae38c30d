"""Adaptive gradient clipping: each unit u of a weight W is limited relative to the weight itself.

    G_u <- G_u * c, c = min(1, clip_factor * max(||W_u||, eps) / ||G_u||)

    Brock, De, Smith, Simonyan 2021, High-performance large-scale image recognition without normalization,
    arXiv:2102.06171.

A unit is one index of `unit_axis` (a row of a linear weight, a filter of a convolution). A tensor with at most one
dimension longer than 1 is one unit, as in the paper's code: vectors, scalars, and weights of shape (n, 1) or (1, n).
eps lets zero-initialised weights learn. The paper leaves out the last linear layer: name it in `exclude`. The norm of
complex numbers is that of their moduli.

Departs from the paper's code in weights of three dimensions. Here these are torch's Conv1d, a unit is a filter; there
they are multi-head linear weights, and a unit is one index of the two output dimensions. Weights of five dimensions,
which that code refuses, are Conv3d filters, as in `optax.adaptive_grad_clip`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import Tensor, nn

from tightgrad.clip.dtensor import placed_as, stored, touched
from tightgrad.clip.local_norm import WIDE
from tightgrad.clip.norm import exact_norm, exact_norms, unit_norms
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_integer, check_number
from tightgrad.core.errors import ConfigError, UnsupportedError
from tightgrad.core.placement import shard_axes
from tightgrad.core.protocols import Clipper, GradNorm
from tightgrad.core.types import Clipped, Grads, State


@dataclass(frozen=True)
class AGC(Clipper):
    """Limits the ratio of gradient to weight for each unit (row or filter).

    Args:
        clip_factor: the largest ratio that passes, above 0.
        eps: the weight norm that units of smaller norm are taken to have, above 0.
        unit_axis: the axis that counts units: 0 for torch's linear and convolution weights (1 for transposed ones).
        exclude: patterns of parameter names ("head.*") that are not clipped.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0], [30.0, 40.0]]))
        >>> grads = {"weight": torch.tensor([[0.3, 0.4], [0.3, 0.4]])}
        >>> clipped = tg.clip.AGC(clip_factor=0.01).clip_(grads, {"weight": weight}, tg.get_total_norm, {})
        >>> grads["weight"]
        tensor([[0.0300, 0.0400],
                [0.3000, 0.4000]])
    """

    clip_factor: float = 0.01
    eps: float = 1e-3
    unit_axis: int = 0
    exclude: tuple[str, ...] = ()

    card: ClassVar[MethodCard] = MethodCard(
        id="agc",
        kind="clip",
        summary="each row or filter is limited relative to its weight's norm",
        scope="unit",
        reference="Brock et al. 2021, arXiv:2102.06171; a 3-D weight is a Conv1d here, in the paper's code multi-head",
        use_when="the network has no normalisation layers, above all with large batches",
        avoid_when="the model is a transformer trained with Adam; clip the global norm instead",
    )

    def __post_init__(self) -> None:
        check_number("clip_factor", self.clip_factor, above=0.0)
        check_number("eps", self.eps, above=0.0)
        check_integer("unit_axis", self.unit_axis, low=0)
        patterns: object = self.exclude
        if not isinstance(patterns, tuple) or not all(isinstance(pattern, str) for pattern in patterns):
            raise ConfigError(f'exclude={self.exclude!r} must be a tuple of name patterns, such as ("head.*",).')

    def clip_(self, grads: Grads, params: Mapping[str, nn.Parameter], norm: GradNorm, state: State) -> Clipped:
        """Scale each unit by its own factor. Collective if a unit is spread over ranks."""
        values = list(grads.values())
        before = norm(values)
        clipped = [self._clip_units_(name, grad, params[name]) for name, grad in grads.items()]
        if any(shard_axes(grad) for grad in values):
            after = norm(values)
        else:
            after = exact_norm(clipped).to(before.dtype) if clipped else before
        return Clipped(before, torch.where(before == 0, 1.0, after / before))

    def _is_excluded(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.exclude)

    def _clip_units_(self, name: str, grad: Tensor, weight: nn.Parameter) -> Tensor:
        """Return the gradient's norm afterwards (of this rank's part): float64."""
        if self._is_excluded(name):
            return exact_norms([grad])[0]
        if grad.is_sparse:
            raise UnsupportedError(f"the gradient of {name!r} is sparse; exclude it from AGC.")
        dims = tuple(range(grad.dim()))
        if sum(size > 1 for size in grad.shape) > 1:
            dims = tuple(dim for dim in dims if dim != min(self.unit_axis, grad.dim() - 1))
        grad_norms = unit_norms(grad, dims)
        weight_norms = unit_norms(placed_as(weight.detach(), grad), dims)
        bounds = self.clip_factor * weight_norms.clamp(min=self.eps)
        factors = torch.where(grad_norms <= bounds, 1.0, bounds / grad_norms)
        if factors.device.type != "cpu" or not bool((factors == 1).all()):
            stored(grad).mul_(factors if grad.dtype in WIDE else factors.float())
            touched([grad])
        after = torch.where(grad_norms == 0, grad_norms, grad_norms * factors)
        return exact_norm([after])
