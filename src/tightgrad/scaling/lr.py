"""The learning rate of a batch k times as large: lr = k * base ("linear") or sqrt(k) * base ("sqrt").

    Goyal et al. 2017, Accurate, Large Minibatch SGD, arXiv:1706.02677 (linear rule, gradual warm-up, section 2);
    Krizhevsky 2014, One weird trick for parallelizing convolutional neural networks, arXiv:1404.5997 (sqrt rule).

Adam at another batch (`scale_adam`): beta2 ** (batch / base_batch), so that the half-life of the second moment is the
same number of items.

    Marek et al. 2025, Small Batch Size Training for Language Models, arXiv:2507.07101 (beta2; beta1 stays 0.9).

Warm-up, over applied steps t = 0, 1, ...: lr_t = base + (scaled - base) * min(t, n) / n ("gradual"), or base for
t < n and scaled from then on ("constant", which Goyal et al. compare with and find worse).
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from tightgrad.core.check import check_choice, check_decay, check_integer, check_number
from tightgrad.core.errors import ConfigError

RULES = ("linear", "sqrt", "none")
SHAPES = ("gradual", "constant")


def scale_lr(base_lr: float, base_batch: float, batch: float, rule: str = "linear") -> float:
    """Return the learning rate for `batch`, from one that works for `base_batch`.

    Args:
        base_lr: learning rate at `base_batch`, above 0.
        base_batch: weight of a whole step (over micro-batches and ranks), in samples or tokens, above 0.
        batch: the new weight of a whole step, in the same unit, above 0.
        rule: "linear" for SGD, "sqrt" for Adam and its kin (and LAMB), "none" for the base rate.

    Raises:
        ConfigError: a value is out of its bounds.

    Examples:
        >>> scale_lr(0.1, 256, 8192)
        3.2
        >>> scale_lr(0.1, 256, 4096, "sqrt")
        0.4
    """
    check_number("base_lr", base_lr, above=0.0)
    check_number("base_batch", base_batch, above=0.0)
    check_number("batch", batch, above=0.0)
    check_choice("rule", rule, RULES)
    exponent = {"linear": 1.0, "sqrt": 0.5, "none": 0.0}[rule]
    return float(base_lr * (batch / base_batch) ** exponent)


def scale_adam(
    lr: float, betas: tuple[float, float], base_batch: float, batch: float, rule: str = "sqrt"
) -> dict[str, Any]:
    """Return the settings of Adam for `batch`, from those that work for `base_batch`, on equally many items.

    `beta2` becomes `beta2 ** (batch / base_batch)`: the half-life of the second moment is then the same number of
    tokens or samples. `beta1` stays, as in the paper. The rate follows the square-root rule, which holds where noise
    dominates the gradient. With beta2 scaled, the best rate may move less than that: from 512 sequences to 1, the
    authors of the paper use half the rate, where the rule gives a 23rd.

    Args:
        lr: learning rate at `base_batch`, above 0.
        betas: decay of the two moments at `base_batch`; beta1 in [0, 1), beta2 in (0, 1).
        base_batch: weight of a whole step (over micro-batches and ranks), in samples or tokens, above 0.
        batch: the new weight of a whole step, in the same unit, above 0.
        rule: of `scale_lr`: "sqrt", or "none" to keep the rate, or "linear".

    Returns:
        "lr" and "betas", as Adam and AdamW take them.

    Raises:
        ConfigError: a value is out of its bounds, or beta2 comes so close to 0 or 1 that it is one of them in float64.

    Examples:
        >>> import torch
        >>> settings = scale_adam(6e-4, (0.9, 0.95), base_batch=512, batch=2048)
        >>> settings["lr"], round(settings["betas"][1], 4)
        (0.0012, 0.8145)
        >>> settings = scale_adam(6e-4, (0.9, 0.95), base_batch=512, batch=1, rule="none")
        >>> settings["lr"], round(settings["betas"][1], 4)
        (0.0006, 0.9999)
        >>> optimizer = torch.optim.AdamW(torch.nn.Linear(4, 2).parameters(), **settings)
    """
    beta1, beta2 = betas
    check_decay("beta1", beta1)
    check_number("beta2", beta2, above=0.0)
    check_decay("beta2", beta2)
    scaled_lr = scale_lr(lr, base_batch, batch, rule)
    scaled = float(beta2 ** (batch / base_batch))
    if not 0.0 < scaled < 1.0:
        raise ConfigError(
            f"beta2={beta2:g} at a batch of {base_batch:g} becomes {scaled:g} at {batch:g}, which Adam cannot use: its "
            f"half-life is {base_batch * math.log(0.5) / math.log(beta2):.3g} items. Take a batch nearer to base_batch."
        )
    return {"lr": scaled_lr, "betas": (float(beta1), scaled)}


class Warmup(LRScheduler):
    """Moves from the base rate to the optimizer's own (scaled) rate in `num_steps` applied steps, and does nothing
    afterwards.

    It counts applied steps: `tightgrad.attach(..., scheduler=...)` steps it after each step that was not skipped; a
    loop
    of your own must not step it after a skipped one.

    A torch scheduler, so it chains with others: `ChainedScheduler([Warmup(...), other])` multiplies the two, and
    `SequentialLR(optimizer, [Warmup(optimizer, base_lr, n), other], milestones=[n])` runs `other` after it. To resume,
    make the scheduler first, then load its state and the optimizer's.

    Args:
        optimizer: with the scaled rate as the `lr` of its groups.
        base_lr: where warm-up starts, above 0; a sequence gives each parameter group its own.
        num_steps: applied steps until the scaled rate is reached, at least 1; Goyal et al. take five epochs.
        shape: "gradual" or "constant".
        last_epoch: as in torch: -1 starts, another number resumes.

    Raises:
        ConfigError: a value is out of its bounds, or there are more or fewer base rates than groups.

    Examples:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.SGD([weight], lr=scale_lr(0.1, 256, 1024))
        >>> warmup = Warmup(optimizer, 0.1, num_steps=3)
        >>> rates = []
        >>> for step in range(5):
        ...     rates.append(round(optimizer.param_groups[0]["lr"], 3))
        ...     optimizer.step()
        ...     warmup.step()
        >>> rates
        [0.1, 0.2, 0.3, 0.4, 0.4]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        base_lr: float | Sequence[float],
        num_steps: int,
        shape: str = "gradual",
        last_epoch: int = -1,
    ) -> None:
        check_integer("num_steps", num_steps, low=1)
        check_choice("shape", shape, SHAPES)
        groups = optimizer.param_groups
        rates = list(base_lr) if isinstance(base_lr, Sequence) else [base_lr] * len(groups)
        if len(rates) != len(groups):
            raise ConfigError(f"base_lr has {len(rates)} rates, the optimizer {len(groups)} groups; give one for each.")
        for rate in rates:
            check_number("base_lr", rate, above=0.0)
        targets = [float(group.get("initial_lr", group["lr"])) for group in groups]
        for target in targets:
            check_number("the optimizer's lr", target, above=0.0)
        self.start_factors = [rate / target for rate, target in zip(rates, targets, strict=True)]
        self.num_steps = num_steps
        self.shape = shape
        super().__init__(optimizer, last_epoch)

    def _factor(self, start: float, step: int) -> float:
        if step >= self.num_steps:
            return 1.0
        return start + (1.0 - start) * step / self.num_steps if self.shape == "gradual" else start

    def get_lr(self) -> list[float | Tensor]:
        """Return the rates for the coming step, from the current ones, so that schedulers chain."""
        now = max(self.last_epoch, 0)
        return [
            group["lr"] * (self._factor(start, now) / (self._factor(start, now - 1) if now else 1.0))
            for group, start in zip(self.optimizer.param_groups, self.start_factors, strict=True)
        ]

    def _get_closed_form_lr(self) -> list[float | Tensor]:
        """The rates for the coming step when no other scheduler takes part; torch asks when it restarts one."""
        return [
            base * self._factor(start, self.last_epoch)
            for base, start in zip(self.base_lrs, self.start_factors, strict=True)
        ]
