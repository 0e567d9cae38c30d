"""Unscale, average, measure, clip: in this order and in a wide format."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tightgrad_lab.exercises.model import Case, Draw, Exam, slip

Grads = list[Tensor]


def cases(draw: Draw) -> list[Case]:
    """Gradients whose squares overflow in fp16, and gradients that stay small; the clip acts in most cases."""
    found: list[Case] = []
    for index in range(8):
        scale, processes = float(2 ** draw.integer(4, 10)), draw.integer(2, 3)
        size = 300.0 if index % 2 else 8.0  # of an element with its scale
        if index == 4:
            scale, size = 2.0**14, 0.01  # unscaled in fp16, it would be subnormal
        shapes = ((3, 2), (4,))
        common = [draw.normal(*shape) for shape in shapes]
        grads = [[(size * (one + 0.7 * draw.normal(*one.shape))).half() for one in common] for _ in range(processes)]
        exact = float(right([one * 0 for one in common], grads, scale, 1.0, 1.0)["norm"])
        bound = exact * (draw.real(1.5, 3.0) if index % 4 == 3 else draw.real(0.2, 0.7))
        found.append(([draw.normal(*shape) for shape in shapes], grads, scale, bound, draw.real(0.05, 0.2)))
    return found


def ask(function: Callable[..., Any], case: Case) -> dict[str, Any]:
    """Return how far the weights moved, in units of the rate: small moves count as well."""
    weights, *_, rate = case
    answer = function(*case)
    if not isinstance(answer, dict) or not isinstance(answer.get("weights"), list):
        return answer  # type: ignore[no-any-return]
    moves = [(old - new) / rate for old, new in zip(weights, answer["weights"], strict=False)]
    return {"weights": moves, "norm": answer.get("norm")}


def right(
    weights: Grads,
    processes: list[Grads],
    scale: float,
    max_norm: float,
    rate: float,
    unscale: str = "first",
    clip: str = "mean",
    half: bool = False,
    mean: bool = True,
    unscaled: str = "wide",
    over: str = "all",
    record: str = "before",
) -> dict[str, Any]:
    """Return the answer."""
    unit = {"first": scale, "times": 1.0 / scale}.get(unscale, 1.0)
    parts = [[one.double() / unit for one in grads] for grads in processes]
    if unscaled == "half":
        parts = [[(one / unit).double() for one in grads] for grads in processes]
    if unscaled == "half mean":
        means = [(torch.stack(one).mean(0) / unit).double() for one in zip(*processes, strict=True)]
        parts = [means for _ in processes]
    norm = math.nan
    if clip == "each":
        for grads in parts:
            norm, factor = _norm(grads, max_norm, unit, half)
            grads[:] = [one * factor for one in grads]
    means = [torch.stack(one).sum(0) / (len(parts) if mean else 1) for one in zip(*parts, strict=True)]
    if clip == "mean":
        norm, factor = _norm(means, max_norm, unit, half)
        norms = [float(one.norm()) for one in means]
        if over == "sum":
            norm, factor = sum(norms), min(1.0, max_norm / sum(norms))
        factors = [min(1.0, max_norm / one) if over == "each" else factor for one in norms]
        means = [one * own for one, own in zip(means, factors, strict=True)]
        norm *= factor if record == "after" else 1.0
    if clip in ("none", "value"):
        norm, _ = _norm(means, max_norm, unit, half)
    if clip == "value":
        means = [one.clamp(-max_norm, max_norm) for one in means]
    if unscale == "last":
        means = [one / scale for one in means]
    return {"weights": means, "norm": norm}


def _norm(grads: Grads, max_norm: float, unit: float, half: bool) -> tuple[float, float]:
    """Return norm and factor; in fp16 the square of a scaled gradient is infinite beyond its range."""
    scaled = [(one * unit) ** 2 for one in grads]
    norm = math.sqrt(sum(float((one.half() if half else one).sum()) for one in scaled)) / unit
    return norm, min(1.0, max_norm / norm)


NARROW = (
    "you unscale in fp16: small gradients lose their digits or become zero. Convert to float32 or float64 before you divide",
    "你在 fp16 里还原：小梯度会丢掉有效位，甚至变成零。应当先转成 float32 或 float64，再做除法",
)
EXAM = Exam(
    function="step",
    cases=cases,
    right=right,
    ask=ask,
    tolerance=3e-3,  # a wrong way through fp16 rounds; the right one does not
    slips=(
        slip(
            "the clip comes before unscaling: the bound is smaller than meant by the factor of the loss scale",
            "在还原之前裁剪：实际的上限比想要的小了一个损失缩放的倍数",
            unscale="last",
        ),
        slip("the gradients are never unscaled", "梯度从来没有还原", unscale="never"),
        slip(
            "every process clips by its own norm before the mean: clip the mean, once",
            "各进程在平均之前按自己的范数裁剪了：应当对平均梯度裁剪一次",
            clip="each",
        ),
        slip(
            "the squares are formed in fp16 and overflow: the norm is infinite and the factor 0. Convert to float32 or float64 first",
            "平方用 fp16 计算，溢出了：范数成了无穷大，系数为 0。应当先转成 float32 或 float64",
            half=True,
        ),
        slip("nothing is clipped", "没有裁剪", clip="none"),
        slip(
            "you clip by value: multiply all elements by one factor",
            "你按值裁剪了：应当所有元素乘同一个系数",
            clip="value",
        ),
        slip("this is the sum over the processes, not their mean", "这是各进程之和，不是平均", mean=False),
        slip(
            "you multiply by the loss scale where you should divide",
            "该除以损失缩放倍数的地方乘了它",
            unscale="times",
        ),
        slip(*NARROW, unscaled="half"),
        slip(*NARROW, unscaled="half mean"),
        slip(
            "every tensor is clipped by its own norm: one factor must serve all",
            "每个张量按自己的范数裁剪了：所有张量要用同一个系数",
            over="each",
        ),
        slip(
            "you add the norms of the tensors: add their squares, then take the root",
            "你把各张量的范数相加了：应当把平方相加，再开方",
            over="sum",
        ),
        slip(
            "the norm is measured after the clip: return the one before it",
            "返回的是裁剪之后的范数：应当返回裁剪之前的",
            record="after",
        ),
    ),
)
