"""One micro-batch's backward."""

from collections.abc import Mapping

from torch import Tensor

from tightgrad.adapters.plain import adding_zero
from tightgrad.core.protocols import Adapter
from tightgrad.pipeline.losses import check_has_gradient
from tightgrad.pipeline.noise_meter import NoiseMeter


def run_backward(loss: Tensor | None, weights: Mapping[str, float], adapter: Adapter, noise: NoiseMeter | None) -> None:
    """Add the gradient of `loss` to the others.

    Args:
        loss: scaled; None runs nothing.
        weights: of the micro-batch, for each loss; where all are 0, exactly 0 is added.
        adapter: knows the leaves.
        noise: sees the gradient, if it counts.

    Raises:
        UsageError: the loss depends on nothing that requires a gradient.
    """
    if loss is None:
        return
    check_has_gradient(loss)
    if not any(weights.values()):
        with adding_zero(adapter.leaves()):
            loss.backward()
    elif noise is not None:
        with noise.watching(adapter.leaves(), next(iter(weights.values()))):
            loss.backward()
    else:
        loss.backward()
