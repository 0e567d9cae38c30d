"""LAMB: Adam's direction, with a step for each parameter tensor in proportion to its norm.

    m <- beta1 m + (1 - beta1) g;    v <- beta2 v + (1 - beta2) g^2
    r = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay * w
    w <- w - lr * (||w|| / ||r||) * r

    You et al. 2019, Large Batch Optimization for Deep Learning: Training BERT in 76 minutes, arXiv:1904.00962,
    algorithm 2.

Departs from the paper: phi is the identity (the paper leaves it open), and the ratio is 1 where weights or update are
all zero. t counts the steps in which the parameter had a gradient.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from tightgrad.core.check import check_decay, check_number
from tightgrad.core.placement import local_part
from tightgrad.scaling.layerwise import Group, LayerwiseOptimizer, trust_ratios


class LAMB(LayerwiseOptimizer):
    """Steps each parameter along Adam's direction, in proportion to the norm of its weights.

    Does not clip: clip before it, with the pipeline, as the paper's BERT runs do; the moments then see the clipped
    gradient. A factor on all gradients that never changes would cancel, one that varies from step to step does not.

    Biases and normalisation parameters are commonly left out, in a group with `layer_adaptation="none"` (plain AdamW)
    and `weight_decay=0`. Works on sharded parameters (FSDP2), where `step` is collective. Moments have the
    parameter's dtype, as in torch; keep parameters in float32.

    Args:
        params: parameters or groups, as for any torch optimizer; each group may have its own of the settings below.
        lr: global learning rate, at least 0.
        betas: decay of the two moments, each in [0, 1).
        eps: added to the root of the second moment, at least 0.
        weight_decay: decoupled, inside the trust ratio, at least 0.
        layer_adaptation: "trust_ratio", or "none" for a ratio of 1.
        implementation: "foreach" (all tensors at once) or "single_tensor" (the reference).

    Raises:
        ConfigError: a value is out of its bounds.

    Examples:
        >>> model = torch.nn.Linear(4, 2)
        >>> weights = {"params": [model.weight]}
        >>> biases = {"params": [model.bias], "layer_adaptation": "none", "weight_decay": 0.0}
        >>> optimizer = LAMB([weights, biases], lr=2e-3)
        >>> [group["weight_decay"] for group in optimizer.param_groups]
        [0.01, 0.0]
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        layer_adaptation: str = "trust_ratio",
        implementation: str = "foreach",
    ) -> None:
        defaults: dict[str, Any] = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "layer_adaptation": layer_adaptation,
            "implementation": implementation,
        }
        super().__init__(params, defaults)

    def _check_settings(self, group: Group) -> None:
        check_number("lr", group["lr"], low=0.0)
        check_number("eps", group["eps"], low=0.0)
        check_number("weight_decay", group["weight_decay"], low=0.0)
        for name, beta in zip(("beta1", "beta2"), group["betas"], strict=True):
            check_decay(name, beta)

    def _advance(self, param: Tensor) -> tuple[Tensor, Tensor, int]:
        """This rank's part of the two moments, and the number of the step that begins."""
        state = self.state[param]
        if not state:
            # On the CPU, as in torch.optim.Adam: read without a device sync.
            state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(param)
        state["step"] += 1
        return local_part(state["exp_avg"]), local_part(state["exp_avg_sq"]), int(state["step"])

    def _single_tensor_(self, param: Tensor, grad: Tensor, group: Group) -> None:
        (beta1, beta2), weight, g = group["betas"], local_part(param), local_part(grad)
        first, second, step = self._advance(param)
        first.copy_(beta1 * first + (1 - beta1) * g)
        second.copy_(beta2 * second + (1 - beta2) * g.square())
        unbiased_first = first / (1 - beta1**step)
        unbiased_second = second / (1 - beta2**step)
        update = unbiased_first / (unbiased_second.sqrt() + group["eps"]) + group["weight_decay"] * weight
        if group["layer_adaptation"] == "trust_ratio":
            (ratio,) = trust_ratios([param], [update], torch.div)
            update = update * ratio
        weight.sub_(group["lr"] * update)

    def _foreach_(self, params: list[Tensor], grads: list[Tensor], group: Group) -> None:
        (beta1, beta2), weights = group["betas"], [local_part(param) for param in params]
        gs = [local_part(grad) for grad in grads]
        firsts, seconds, steps = (list(values) for values in zip(*map(self._advance, params), strict=True))
        torch._foreach_lerp_(firsts, gs, 1 - beta1)
        torch._foreach_mul_(seconds, beta2)
        torch._foreach_addcmul_(seconds, gs, gs, 1 - beta2)
        denominators = torch._foreach_div(seconds, [1 - beta2**step for step in steps])
        torch._foreach_sqrt_(denominators)
        torch._foreach_add_(denominators, group["eps"])
        updates = torch._foreach_div(firsts, [1 - beta1**step for step in steps])
        torch._foreach_div_(updates, denominators)
        if group["weight_decay"]:
            torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        if group["layer_adaptation"] == "trust_ratio":
            torch._foreach_mul_(updates, trust_ratios(params, list(updates), torch.div))
        torch._foreach_add_(weights, updates, alpha=-group["lr"])
