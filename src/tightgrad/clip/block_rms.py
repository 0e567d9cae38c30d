"""Block RMS clipping: g_i <- g_i / max(1, rms(g_i) / max_rms), the root mean square of each parameter's gradient.

    Shazeer and Stern 2018, Adafactor: Adaptive learning rates with sublinear memory cost, arXiv:1804.04235.

Their update clipping, applied to gradients as `optax.clip_by_block_rms` does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from tightgrad.clip.per_tensor_norm import clip_each_
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_number
from tightgrad.core.protocols import Clipper, GradNorm
from tightgrad.core.types import Clipped, Grads, State


@dataclass(frozen=True)
class BlockRMS(Clipper):
    """Limits the root mean square of each parameter's gradient; a complex entry counts by its modulus.

    Args:
        max_rms: the largest root mean square that passes, above 0.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> grads = {"small": torch.tensor([0.3, -0.3]), "large": torch.tensor([3.0, -3.0, 3.0])}
        >>> clipped = tg.clip.BlockRMS(1.0).clip_(grads, {}, tg.get_total_norm, {})
        >>> grads
        {'small': tensor([ 0.3000, -0.3000]), 'large': tensor([ 1., -1.,  1.])}
    """

    max_rms: float

    card: ClassVar[MethodCard] = MethodCard(
        id="block_rms",
        kind="clip",
        summary="a limit on the root mean square of each parameter's gradient, whatever its size",
        scope="tensor",
        reference="Shazeer and Stern 2018, arXiv:1804.04235; optax.clip_by_block_rms",
        use_when="tensors differ a lot in size and should share one bound",
        avoid_when="the direction of the whole gradient matters; clip the global norm instead",
    )

    def __post_init__(self) -> None:
        check_number("max_rms", self.max_rms, above=0.0)

    def clip_(self, grads: Grads, params: Mapping[str, nn.Parameter], norm: GradNorm, state: State) -> Clipped:
        """Scale each gradient by its own factor."""
        numels = torch.tensor([max(grad.numel(), 1) for grad in grads.values()], dtype=torch.float64, device="cpu")
        limits = self.max_rms * numels.sqrt()
        return clip_each_(grads, norm, lambda norms: limits.to(norms.device, non_blocking=True))
