"""LARS: SGD with one learning rate for each parameter tensor, in proportion to its norm over its gradient's.

    ratio = trust_coefficient * ||w|| / (||g|| + weight_decay * ||w|| + eps)
    u <- momentum * u + ratio * (g + weight_decay * w);    w <- w - lr * u

    You, Gitman, Ginsburg 2017, Large Batch Training of Convolutional Networks, arXiv:1708.03888, algorithm 1.

Departs from the paper:
- the learning rate multiplies outside of the momentum buffer, as in torch.optim.SGD, so that a change of the rate acts
  at once; `lr_position="inside"` is the paper's v <- momentum * v + lr * ratio * (...). They are equal while the rate
  is constant, and under a schedule if `correct_momentum_` follows each change.
- the ratio is 1 where weights or gradient are all zero (the paper's would be 0 or 0/0), and has an eps.
- the schedule of the rate is a scheduler's; Nesterov momentum is offered.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from tightgrad.core.check import check_choice, check_number
from tightgrad.core.placement import local_part
from tightgrad.scaling.layerwise import Group, LayerwiseOptimizer, trust_ratios
from tightgrad.scaling.momentum import BUFFER

MOMENTUM_RULES = ("heavy_ball", "nesterov")
LR_POSITIONS = ("outside", "inside")


class LARS(LayerwiseOptimizer):
    """Steps each parameter as SGD does, with a learning rate in proportion to its norm over its gradient's.

    Does not clip: the pipeline clips the gradient before it comes here (a clip by one global norm changes the ratios
    by the same factor for all tensors, so that without weight decay it cancels).

    Biases and normalisation parameters are commonly left out, in a group with `layer_adaptation="none"` (plain
    momentum SGD) and `weight_decay=0`. Works on sharded parameters (FSDP2), where `step` is collective.

    Args:
        params: parameters or groups, as for any torch optimizer; each group may have its own of the settings below.
        lr: global learning rate, at least 0.
        momentum: in [0, 1]; 0 keeps no buffer.
        weight_decay: added to the gradient, at least 0.
        trust_coefficient: the share of a tensor's norm that a step at lr = 1 changes, above 0.
        eps: added to the ratio's denominator, at least 0.
        momentum_rule: "heavy_ball" or "nesterov".
        lr_position: "outside" or "inside" the momentum buffer.
        layer_adaptation: "trust_ratio", or "none" for a ratio of 1.
        implementation: "foreach" (all tensors at once) or "single_tensor" (the reference).

    Raises:
        ConfigError: a value is out of its bounds.

    Examples:
        >>> model = torch.nn.Linear(4, 2)
        >>> weights = {"params": [model.weight]}
        >>> biases = {"params": [model.bias], "layer_adaptation": "none", "weight_decay": 0.0}
        >>> optimizer = LARS([weights, biases], lr=2.0, weight_decay=1e-4)
        >>> [group["layer_adaptation"] for group in optimizer.param_groups]
        ['trust_ratio', 'none']
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        eps: float = 1e-9,
        momentum_rule: str = "heavy_ball",
        lr_position: str = "outside",
        layer_adaptation: str = "trust_ratio",
        implementation: str = "foreach",
    ) -> None:
        defaults: dict[str, Any] = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
            "momentum_rule": momentum_rule,
            "lr_position": lr_position,
            "layer_adaptation": layer_adaptation,
            "implementation": implementation,
        }
        super().__init__(params, defaults)

    def _check_settings(self, group: Group) -> None:
        check_number("lr", group["lr"], low=0.0)
        check_number("momentum", group["momentum"], low=0.0, high=1.0)
        check_number("weight_decay", group["weight_decay"], low=0.0)
        check_number("trust_coefficient", group["trust_coefficient"], above=0.0)
        check_number("eps", group["eps"], low=0.0)
        check_choice("momentum_rule", group["momentum_rule"], MOMENTUM_RULES)
        check_choice("lr_position", group["lr_position"], LR_POSITIONS)

    def _buffer(self, param: Tensor) -> Tensor:
        state = self.state[param]
        if BUFFER not in state:
            state[BUFFER] = torch.zeros_like(param)
        return local_part(state[BUFFER])

    def _single_tensor_(self, param: Tensor, grad: Tensor, group: Group) -> None:
        weight, direction = local_part(param), local_part(grad)
        if group["weight_decay"]:
            direction = direction + group["weight_decay"] * weight
        if group["layer_adaptation"] == "trust_ratio":
            (ratio,) = _ratios([param], [grad], group)
            direction = direction * ratio
        if group["lr_position"] == "inside":
            direction = direction * group["lr"]
        if group["momentum"]:
            buffer = self._buffer(param)
            buffer.copy_(group["momentum"] * buffer + direction)
            direction = direction + group["momentum"] * buffer if group["momentum_rule"] == "nesterov" else buffer
        if group["lr_position"] == "outside":
            direction = direction * group["lr"]
        weight.sub_(direction)

    def _foreach_(self, params: list[Tensor], grads: list[Tensor], group: Group) -> None:
        weights = [local_part(param) for param in params]
        directions: list[Tensor] | tuple[Tensor, ...] = [local_part(grad) for grad in grads]
        if group["weight_decay"]:
            directions = torch._foreach_add(directions, weights, alpha=group["weight_decay"])
        if group["layer_adaptation"] == "trust_ratio":
            directions = torch._foreach_mul(directions, _ratios(params, grads, group))
        if group["lr_position"] == "inside":
            directions = torch._foreach_mul(directions, group["lr"])
        if group["momentum"]:
            buffers = [self._buffer(param) for param in params]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, directions)
            if group["momentum_rule"] == "nesterov":
                directions = torch._foreach_add(directions, buffers, alpha=group["momentum"])
            else:
                directions = buffers
        step_size = group["lr"] if group["lr_position"] == "outside" else 1.0
        torch._foreach_add_(weights, directions, alpha=-step_size)


def _ratios(params: list[Tensor], grads: list[Tensor], group: Group) -> list[Tensor]:
    trust, decay, eps = group["trust_coefficient"], group["weight_decay"], group["eps"]
    return trust_ratios(params, grads, lambda weights, grads: trust * weights / (grads + decay * weights + eps))
