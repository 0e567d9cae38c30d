"""An optimizer that keeps what it was given and changes nothing."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Capture(torch.optim.Optimizer):
    """Records `grad` of every parameter at each step: None where there is none."""

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        self.names, parameters = zip(*named_parameters, strict=True)
        self.steps: list[dict[str, Tensor | None]] = []
        super().__init__(parameters, {})

    def step(self) -> None:
        (group,) = self.param_groups
        grads = [None if p.grad is None else p.grad.detach().clone() for p in group["params"]]
        self.steps.append(dict(zip(self.names, grads, strict=True)))
