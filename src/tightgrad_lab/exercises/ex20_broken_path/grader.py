"""Accumulate, check, compress with feedback, exchange, clip: on several processes in one program."""

import math
from typing import Any

import torch
from torch import Tensor

from tightgrad_lab.exercises.model import Case, Draw, Exam, slip

Window = list[tuple[Tensor, int]]


def cases(draw: Draw) -> list[Case]:
    """Ragged windows; in most cases one gradient of one process is not finite; every third bound never acts."""
    found: list[Case] = []
    for index in range(6):
        world, size = draw.integer(2, 3), draw.integer(6, 9)
        steps: list[list[Window]] = []
        for _ in range(6):
            row = [
                [(draw.normal(size), draw.pick((1, 2, 8, 20))) for _ in range(draw.integer(2, 3))] for _ in range(world)
            ]
            steps.append(row)
        if index % 3:
            steps[draw.integer(1, 3)][draw.integer(0, world - 1)][0][0][2] = draw.pick((math.nan, math.inf))
        bound = draw.real(8.0, 12.0) if index % 3 == 2 else draw.real(0.3, 0.6)
        found.append((draw.normal(size, scale=0.1), steps, draw.integer(2, 3), bound, draw.real(0.05, 0.2)))
    return found


def right(
    weights: Tensor,
    steps: list[list[Window]],
    k: int,
    max_norm: float,
    rate: float,
    weight: str = "items",
    check: str = "before",
    vote: bool = True,
    clip: str = "delivered",
    feedback: bool = True,
    record: str = "before",
    taken: str = "sent",
    skip: str = "keep",
    look: str = "finite",
    sum_: str = "sum",
) -> dict[str, Any]:
    """Return the answer."""
    residuals = [torch.zeros_like(weights) for _ in steps[0]]
    norms, skipped = [], []
    for row in steps:
        total = sum(items for window in row for _, items in window)
        gradients = []
        for window in row:
            own = sum(items for _, items in window)
            shares = {
                "items": [items / total for _, items in window],
                "K": [1 / len(window) / len(row) for _ in window],
                "own": [items / own / len(row) for _, items in window],
                "W": [items * len(row) / total for _, items in window],
                "sum": [float(items) for _, items in window],
            }[weight]
            gradients.append(torch.stack([g * share for (g, _), share in zip(window, shares, strict=True)]).sum(0))
        finite = [bool((one.isfinite() if look == "finite" else ~one.isnan()).all()) for one in gradients]
        skipped.append(not all(finite))
        if clip in ("local", "both"):
            gradients = [one * min(1.0, max_norm / float(one.norm())) for one in gradients]
        if not all(finite) and check == "after":
            residuals = [
                e + g if not (vote and ok) else e for e, g, ok in zip(residuals, gradients, finite, strict=True)
            ]
        if not all(finite) and vote:
            residuals = residuals if skip == "keep" else [torch.zeros_like(weights) for _ in row]
            norms += [0.0] if record == "skipped" else []
            continue
        delivered = torch.zeros_like(weights)
        for rank, gradient in enumerate(gradients):
            if not finite[rank]:
                continue
            wanted = (
                residuals[rank] if feedback and not (check == "after" and not vote and not all(finite)) else 0
            ) + gradient
            if check == "after" and not vote and not all(finite):
                wanted = residuals[rank]
            if clip == "sum":
                wanted = wanted * min(1.0, max_norm / float(wanted.norm()))
            chosen = wanted.abs().topk(k).indices
            delivered[chosen] += wanted[chosen]
            residuals[rank] = wanted.clone()
            if taken == "sent":
                residuals[rank][chosen] = 0
        delivered = delivered / (len(row) if sum_ == "mean" else 1)
        norms.append(float(delivered.norm()))
        factor = min(1.0, max_norm / norms[-1]) if clip in ("delivered", "both") else 1.0
        factor = max_norm / norms[-1] if clip == "stretched" else factor
        if record == "after":
            norms[-1] *= factor
        weights = weights - rate * factor * delivered
    return {"weights": weights, "norms": norms, "skipped": skipped}


EXAM = Exam(
    function="train",
    cases=cases,
    right=right,
    together=4,
    seconds=30.0,  # four at once, of so many: an answer that none explains takes the longest
    slips=(
        slip(
            "micro-batches are weighted by 1/K and processes by 1/W: weight by items over all items of all processes",
            "微批次按 1/K、进程按 1/W 加权了：应当按样本数占所有进程样本总数的比例加权",
            weight="K",
        ),
        slip(
            "the count covers one process only: weight by items over all items of all processes",
            "只数了一个进程的样本：应当按样本数占所有进程样本总数的比例加权",
            weight="own",
        ),
        slip(
            "the factor W belongs to an average such as DDP's; here the messages are added",
            "系数 W 用来抵消 DDP 那样的平均；这里的消息是相加的",
            weight="W",
        ),
        slip(
            "the norm is recorded after the clip: record the one before it",
            "记录的是裁剪之后的范数：应当记录裁剪之前的",
            record="after",
        ),
        slip("this is the sum over items, not the mean", "这是对样本的和，不是平均", weight="sum"),
        slip(
            "a gradient that is not finite reaches the residual before it is looked for",
            "NaN 或无穷大先进了残差，才去检查",
            check="after",
        ),
        slip(
            "a process that finds NaN skips alone; all must skip, or the others step without it",
            "发现 NaN 的进程独自跳过了；必须全体跳过，否则其他进程就少了它的一份",
            vote=False,
        ),
        slip(
            "every process clips before compression; the bound is meant for the delivered gradient",
            "各进程在压缩之前各自裁剪了；上限针对的是送达的梯度",
            clip="local",
        ),
        slip(
            "every process clips before compression, and the delivered gradient is clipped once more: clip once, at the end",
            "各进程在压缩之前裁剪了，送达之后又裁剪一次：只在最后裁剪一次",
            clip="both",
        ),
        slip("nothing is clipped", "没有裁剪", clip="none"),
        slip(
            "a delivered gradient below the bound is lengthened: the factor must never exceed 1",
            "送达的梯度没超过上限，却被拉长了：系数不能超过 1",
            clip="stretched",
        ),
        slip(
            "infinity gets through: you look for NaN only; `isfinite` finds both",
            "无穷大没有被拦住：你只查了 NaN；`isfinite` 两样都查",
            look="nan",
        ),
        slip(
            "the messages are averaged: they are weighted by the items of all processes already, so add them",
            "消息又取了平均：它们已按所有进程的样本数加权，应当相加",
            sum_="mean",
        ),
        slip("the residual is never added", "残差从来没有加进来", feedback=False),
        slip(
            "what was sent stays in the residual, and is sent again",
            "发送过的还留在残差里，又发了一遍",
            taken="nothing",
        ),
        slip(
            "a skipped step loses the residuals: leave them as they are",
            "跳过的一步把残差丢了：应当保持原样",
            skip="lose",
        ),
        slip(
            "every process clips gradient plus residual: what the clip takes away is lost. Clip what is delivered",
            "各进程裁剪了梯度加残差：被裁掉的就丢了。应当裁剪送达的梯度",
            clip="sum",
        ),
        slip(
            "skipped steps have no norm: record those of the steps that were made",
            "跳过的步没有范数：只记更新了的步",
            record="skipped",
        ),
    ),
)
