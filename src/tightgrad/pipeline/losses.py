"""What `backward` is given, and where the gradients of it start."""

from collections.abc import Mapping

import torch
from torch import Tensor

from tightgrad.core.errors import UsageError


def checked_losses(loss: Tensor | Mapping[str, Tensor], names: tuple[str, ...]) -> Mapping[str, Tensor]:
    """One scalar for each of the plan's losses; a single tensor is the first.

    Raises:
        UsageError: one is missing, unknown, or not a scalar.
    """
    losses = {names[0]: loss} if isinstance(loss, Tensor) else loss
    if losses.keys() != set(names):
        raise UsageError(f"backward() got the losses {sorted(losses)}, but the plan's losses are {sorted(names)}.")
    for name, value in losses.items():
        if value.numel() != 1:
            raise UsageError(f"{name} has the shape {tuple(value.shape)}; reduce it to a scalar before backward().")
    return losses


def run_backward(losses: Mapping[str, Tensor], factors: Mapping[str, float]) -> None:
    """Backward of the sum of the losses in `factors`, each times its factor: there its gradients start.

    The bits are those of `sum(factor * loss).backward()`, and no product is formed.

    Raises:
        RuntimeError: none of them depends on anything that needs a gradient; or what the user's graph raises.
    """
    chosen = {name: losses[name] for name in factors}
    dependent = {name: loss for name, loss in chosen.items() if loss.requires_grad} or chosen
    starts = [torch.full_like(loss, factors[name], requires_grad=False) for name, loss in dependent.items()]
    torch.autograd.backward(list(dependent.values()), starts)
