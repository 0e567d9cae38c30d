"""What `backward` is given."""

from collections.abc import Mapping

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
