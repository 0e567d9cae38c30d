"""The parameters with the largest gradients."""

import torch

from tightgrad.clip.norm import tensor_norms
from tightgrad.core.types import Grads


def worst(grads: Grads, count: int) -> list[tuple[str, float]]:
    """Return names and 2-norms of the `count` largest gradients, those with inf or NaN first.

    Collective when gradients are sharded: every rank must call it.
    """
    norms = tensor_norms(list(grads.values())).nan_to_num(nan=torch.inf).tolist()
    return sorted(zip(grads, norms, strict=True), key=lambda pair: -pair[1])[:count]
