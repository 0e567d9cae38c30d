"""Momentum correction: v <- (lr_new / lr_old) v when the learning rate changes.

    Goyal et al. 2017, Accurate, Large Minibatch SGD, arXiv:1706.02677, section 3 and remark 2.

There are two ways to write momentum SGD, equal as long as the rate is constant:

    outside (9)     u <- m u + g        w <- w - lr u        torch.optim.SGD, LARS(lr_position="outside")
    inside  (10)    v <- m v + lr g     w <- w - v           LARS(lr_position="inside"), Caffe

With v = lr u, (10) becomes (9) under any schedule exactly if v is multiplied by lr_new / lr_old whenever the rate
changes. (9) must not be corrected: its buffer has no learning rate in it.
"""

from collections.abc import Sequence

import torch
from torch.optim import Optimizer

from tightgrad.core.check import check_number
from tightgrad.core.errors import ConfigError, UnsupportedError

BUFFER = "momentum_buffer"


@torch.no_grad()
def correct_momentum_(optimizer: Optimizer, old_lr: float | Sequence[float], new_lr: float | Sequence[float]) -> None:
    """Rescale momentum buffers that hold the learning rate, after that has changed and before the next step.

    Use it with optimizers that put the rate inside the buffer, and only with them: `LARS(lr_position="inside")`, or
    one of your own that keeps "momentum_buffer" and says so by `group["lr_position"] = "inside"`. Never for
    torch.optim.SGD, Adam, LAMB or `LARS(lr_position="outside")`, which are right as they are; it refuses them.

    Args:
        optimizer: all its groups must have the rate inside.
        old_lr: the rate of the last applied step, above 0; a sequence has one for each group, as `get_last_lr()`.
        new_lr: the rate of the coming step, at least 0, likewise.

    Raises:
        UnsupportedError: a group does not have the rate inside; no buffer was changed.
        ConfigError: a rate is out of its bounds, or there are more or fewer rates than groups.
    """
    groups = optimizer.param_groups
    old, new = _per_group("old_lr", old_lr, len(groups)), _per_group("new_lr", new_lr, len(groups))
    for rate in old:
        check_number("old_lr", rate, above=0.0)
    for rate in new:
        check_number("new_lr", rate, low=0.0)
    for index, group in enumerate(groups):
        if group.get("lr_position") != "inside":
            raise UnsupportedError(
                f"group {index} of {type(optimizer).__name__} multiplies by the learning rate outside of its momentum "
                'buffer (or does not say lr_position="inside"): a correction would make it wrong. Leave it out.'
            )
    for group, before, after in zip(groups, old, new, strict=True):
        buffers = [state[BUFFER] for p in group["params"] if (state := optimizer.state.get(p)) and BUFFER in state]
        for buffer in buffers:
            buffer.mul_(after / before)


def _per_group(name: str, rates: float | Sequence[float], num_groups: int) -> list[float]:
    listed = list(rates) if isinstance(rates, Sequence) else [rates] * num_groups
    if len(listed) != num_groups:
        raise ConfigError(f"{name} has {len(listed)} rates, the optimizer {num_groups} groups; give one for each.")
    return listed
