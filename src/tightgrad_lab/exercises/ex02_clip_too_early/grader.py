"""A training loop whose clip stands in the wrong place."""

from typing import Any

import torch
from torch import Tensor

from tightgrad_lab.exercises.model import Case, Draw, Exam, slip


def cases(draw: Draw) -> list[Case]:
    """Small regressions whose first gradients are long and whose last ones are short."""
    found: list[Case] = []
    for _ in range(6):
        inputs = draw.normal(12, 3)
        targets = inputs @ (3 * draw.normal(3)) + 0.1 * draw.normal(12)
        first = float((2 * inputs.T @ targets / len(targets)).norm())
        found.append((inputs, targets, draw.real(0.05, 0.1), round(first * draw.real(0.5, 0.8), 3), draw.integer(6, 9)))
    return found


def right(
    inputs: Tensor,
    targets: Tensor,
    rate: float,
    max_norm: float,
    steps: int,
    clear: bool = True,
    clip: str = "after",
    record: str = "before",
    clear_late: bool = False,
) -> dict[str, Any]:
    """Return the answer."""
    weights, grad = torch.zeros(inputs.shape[1], dtype=torch.float64), torch.zeros(inputs.shape[1], dtype=torch.float64)
    norms, factors = [], []
    for _ in range(steps):
        if clear:
            grad = torch.zeros_like(grad)
        fresh = 2 * inputs.T @ (inputs @ weights - targets) / len(targets)
        if clip == "before":
            grad = grad * _factor(grad, max_norm)
        grad = grad + fresh
        if record == "before":
            norms.append(float(grad.norm()))
        if clip == "after":
            grad = grad * _factor(grad, max_norm)
        if clip == "always":
            grad = grad * (max_norm / float(grad.norm()))
        if clip == "value":
            grad = grad.clamp(-max_norm, max_norm)
        if record == "after":
            norms.append(float(grad.norm()))
        factors.append(max_norm / norms[-1] if clip == "always" else min(1.0, max_norm / norms[-1]))
        if clear_late:
            grad = torch.zeros_like(grad)
        weights = weights - rate * grad
    return {"weights": weights, "norms": norms, "factors": factors}


def _factor(grad: Tensor, max_norm: float) -> float:
    norm = float(grad.norm())
    return min(1.0, max_norm / norm) if norm else 1.0


EXAM = Exam(
    function="train",
    cases=cases,
    right=right,
    tolerance=1e-4,  # torch's clip divides by the norm plus 1e-6
    slips=(
        slip(
            "the gradients are never cleared: the sum of all earlier steps stays in .grad; call zero_grad in every step",
            "梯度从不清零：以前各步的和一直留在 .grad 里；每一步都要调用 zero_grad",
            clear=False,
        ),
        slip(
            "the new gradient is never clipped: what stands before backward bounds what an earlier step left behind",
            "新算出的梯度根本没有裁剪：放在 backward 之前的裁剪，限制的是上一步留下的梯度",
            clip="before",
        ),
        slip(
            "your factor uses the norm after clipping: measure the norm, then clip",
            "你的系数用的是裁剪之后的范数：先求范数，再裁剪",
            record="after",
        ),
        slip(
            "you clip by value; one factor for the whole gradient was asked for",
            "你按值裁剪了；题目要求整个梯度乘同一个系数",
            clip="value",
        ),
        slip(
            "short gradients are stretched to the bound: the factor is never above 1",
            "短的梯度被拉长到了上限：系数不能大于 1",
            clip="always",
        ),
        slip(
            "the gradients are cleared between backward and step: the weights never move",
            "在 backward 与 step 之间清零了：权重永远不动",
            clear_late=True,
        ),
    ),
)
