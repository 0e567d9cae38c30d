"""The norm of many tensors, in float32, safe against overflow and underflow of the sum of powers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tightgrad.core.errors import ConfigError


def total_norm(tensors: Sequence[Tensor], norm_type: float = 2.0) -> Tensor:
    """(sum |x|^p)^(1/p) over all elements of all tensors; p = inf is the largest |x|, p = 0 the count of non-zeros.

    Args:
        tensors: dense tensors of any floating dtype, on one device; the same tensor object counts once.
        norm_type: p, at least 0.

    Returns:
        A float32 scalar on the tensors' device (on the CPU when there are none), without a host sync. NaN and inf
        in the input come through.

    Raises:
        ConfigError: `norm_type` is negative or NaN.
    """
    if not norm_type >= 0:
        raise ConfigError(f"norm_type={norm_type!r} must be at least 0; use 1, 2, inf, another positive number, or 0.")
    distinct = list({id(tensor): tensor for tensor in tensors if tensor.numel()}.values())
    if not distinct:
        return torch.zeros(())
    # Squares of float32 numbers fit into float64, so no power overflows or underflows for p up to 8.
    norms = torch.stack([torch.linalg.vector_norm(tensor, norm_type, dtype=torch.float64) for tensor in distinct])
    if norm_type == 0:
        return norms.sum().float()
    combined: Tensor = torch.linalg.vector_norm(norms, norm_type)
    return combined.float()
