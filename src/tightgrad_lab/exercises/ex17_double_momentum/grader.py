"""Momentum correction and masking on a quadratic."""

from typing import Any

import torch
from torch import Tensor

from tightgrad_lab.exercises.model import Case, Draw, Exam, slip


def cases(draw: Draw) -> list[Case]:
    """Six to ten valleys of different curvature."""
    found: list[Case] = []
    for _ in range(8):
        size = draw.integer(6, 10)
        curvatures = 0.2 + draw.normal(size).abs()
        case = (
            curvatures,
            draw.normal(size),
            draw.real(0.01, 0.04),
            draw.pick((0.5, 0.8, 0.9)),
            draw.integer(1, 3),
            draw.integer(12, 20),
        )
        found.append(case)
    return found


def right(
    curvatures: Tensor,
    weights: Tensor,
    rate: float,
    momentum: float,
    k: int,
    steps: int,
    correct: bool = True,
    mask: str = "both",
    again: bool = False,
    by: str = "size",
    feedback: bool = True,
    damp: bool = False,
    moves: str = "message",
    enters: str = "after",
    sign: float = 1.0,
) -> dict[str, Any]:
    """Return the answer."""
    weights = weights.clone()
    velocity, residual, late, sent = (torch.zeros_like(weights) for _ in range(4))
    for _ in range(steps):
        gradient = curvatures * weights * (1 - momentum if damp else 1)
        velocity = momentum * velocity + gradient if correct else gradient
        velocity = velocity + residual if enters == "before" else velocity
        wanted = velocity + residual if feedback and enters == "after" else velocity
        chosen = (wanted.abs() if by == "size" else wanted).topk(k).indices
        message = torch.zeros_like(weights)
        message[chosen] = wanted[chosen]
        residual = wanted - message if mask != "momentum" else wanted
        if mask in ("both", "momentum"):
            velocity = velocity.clone()
            velocity[chosen] = 0
        late = momentum * late + message if again else message
        moved = {"message": late, "wanted": wanted, "velocity": velocity}[moves]
        weights = weights - sign * rate * moved
        sent[chosen] += 1
    return {"weights": weights, "residual": residual, "sent": sent.tolist()}


EXAM = Exam(
    function="train",
    cases=cases,
    right=right,
    slips=(
        slip(
            "momentum acts a second time, after the exchange: the weights move by what was sent, no more",
            "交换之后又加了一次动量：权重只按所发送的移动",
            again=True,
        ),
        slip(
            "the residual collects gradients; momentum correction collects the momentum",
            "残差里累积的是梯度；动量修正要累积动量",
            correct=False,
        ),
        slip(
            "nothing is masked: what was sent stays in the momentum and pushes on; set it to zero there as well",
            "没有掩蔽：发送过的还留在动量里继续推；动量里也要清零",
            mask="residual",
        ),
        slip("what was sent stays in the residual", "发送过的还留在残差里", mask="momentum"),
        slip(
            "the new gradient enters the momentum whole, not times 1 - momentum",
            "新梯度要整个加进动量，不要乘 1 - momentum",
            damp=True,
        ),
        slip("choose by magnitude", "应当按绝对值选", by="value"),
        slip("there is no feedback: the residual is never added", "没有误差反馈：残差从来没有加进来", feedback=False),
        slip(
            "the residual is fed into the momentum, where it is counted again in every later step: add it to v only",
            "残差加进了动量，以后每一步又会重复计入：只能加到 v 上",
            enters="before",
        ),
        slip(
            "the weights move by the momentum that remains: they move by what was sent",
            "权重按余下的动量移动了：应当按所发送的移动",
            moves="velocity",
        ),
        slip(
            "the weights move by all of v: only what was sent arrives",
            "权重按整个 v 移动了：只有发送的才会到达",
            moves="wanted",
        ),
        slip(
            "this climbs: subtract the rate times what was sent",
            "方向反了：应当减去学习率乘所发送的",
            sign=-1.0,
        ),
    ),
)
