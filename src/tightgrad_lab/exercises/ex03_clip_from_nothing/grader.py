"""Global norm clipping of a list of tensors, in place."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from tightgrad_lab.exercises.compare import unwrapped
from tightgrad_lab.exercises.model import Case, Draw, Exam, slip
from tightgrad_lab.exercises.words import Words

Grads = list[Tensor | None]


def cases(draw: Draw) -> list[Case]:
    """Long and short gradients, with missing ones, zeros, a strided one, an infinite bound, nothing at all."""
    found: list[Case] = []
    for index in range(8):
        grads: Grads = [draw.normal(3, 2), None, draw.normal(4), draw.normal(2, 3).t(), draw.normal(1)[0]]
        length = math.sqrt(sum(float(one.square().sum()) for one in grads if one is not None))
        found.append((draw.shuffled(grads), length * (draw.real(1.2, 2.0) if index % 4 == 3 else draw.real(0.1, 0.6))))
    zero: Grads = [draw.normal(3) * 0, draw.normal(2) * 0]
    return [*found, (zero, draw.real(0.5, 2.0)), ([draw.normal(3)], math.inf), ([], 1.0), ([None], 1.0)]


def ask(function: Callable[..., Any], case: Case) -> dict[str, Any]:
    """Look at the caller's own tensors after the call."""
    grads, max_norm = case
    own = list(grads)
    norm = function(grads, max_norm)
    return {"norm": norm, "gradients": [one for one in own if one is not None]}


def right(
    grads: Grads,
    max_norm: float,
    factor: str = "one",
    cap: bool = True,
    norm: str = "l2",
    returned: str = "before",
    in_place: bool = True,
) -> dict[str, Any]:
    """Return the answer."""
    present = [one for one in grads if one is not None]
    length = _length(present, norm)
    after = [one.clone() for one in present]
    if factor == "one":
        after = [one * _factor(length, max_norm, cap) for one in present]
    elif factor == "each":
        after = [one * _factor(float(one.norm()), max_norm, cap) for one in present]
    elif factor == "value":
        after = [one.clamp(-max_norm, max_norm) for one in present]
    answers = {"before": length, "after": _length(after, norm), "factor": _factor(length, max_norm, cap)}
    return {"norm": answers[returned], "gradients": after if in_place else present}


def _length(tensors: list[Tensor], norm: str) -> float:
    squares = sum(float(one.square().sum()) for one in tensors)
    parts = sum(float(one.norm()) for one in tensors)
    largest = max((float(one.norm()) for one in tensors), default=0.0)
    element = max((float(one.abs().max()) for one in tensors), default=0.0)
    return {"l2": math.sqrt(squares), "squares": squares, "sum": parts, "largest": largest, "element": element}[norm]


def _factor(length: float, max_norm: float, cap: bool) -> float:
    quotient = max_norm / length if length else math.nan if not cap else math.inf
    return min(1.0, quotient) if cap else quotient


def returns_a_float(function: Callable[..., Any], draw: Draw) -> Words | None:
    """Look at the kind of what is returned, which no comparison of numbers shows."""
    return unwrapped(function(*cases(draw)[0]))


EXAM = Exam(
    function="clip_by_norm_",
    cases=cases,
    right=right,
    ask=ask,
    more=returns_a_float,
    changes=(0,),
    without=("tightgrad", "clip_grad_norm_", "clip_grad_norm", "clip_grads_with_norm_", "get_total_norm"),
    slips=(
        slip(
            "every tensor is clipped by its own norm; one factor must serve all, or the direction turns",
            "每个张量按自己的范数裁剪了；必须所有张量用同一个系数，否则方向会偏转",
            factor="each",
        ),
        slip(
            "you return the norm after clipping; the norm before is the one that tells something",
            "你返回的是裁剪之后的范数；有用的是裁剪之前的范数",
            returned="after",
        ),
        slip("you return the factor and not the norm", "你返回的是系数，不是范数", returned="factor"),
        slip(
            "you make new tensors; the caller's own must change, as `grad.mul_(factor)` does",
            "你生成了新的张量；应当原地修改调用者的张量，例如 `grad.mul_(factor)`",
            in_place=False,
        ),
        slip(
            "gradients below the bound are lengthened; the factor must never exceed 1",
            "没超过上限的梯度被拉长了；系数不能超过 1",
            cap=False,
        ),
        slip(
            "you add the norms of the tensors; add their squares, then take the root",
            "你把各张量的范数直接相加了；应当先把平方相加再开方",
            norm="sum",
        ),
        slip("the square root is missing", "漏了开平方", norm="squares"),
        slip(
            "you took the largest norm of a tensor for that of the whole",
            "你把最大的张量范数当成了整体的范数",
            norm="largest",
        ),
        slip(
            "you took the largest element for the norm: take the root of the sum of all squares",
            "你把绝对值最大的元素当成了范数：应当取全部平方和的平方根",
            norm="element",
        ),
        slip(
            "you clip by value; one factor for all elements was asked for",
            "你按值裁剪了；题目要求所有元素乘同一个系数",
            factor="value",
        ),
        slip("nothing is scaled", "什么也没有缩放", factor="none"),
    ),
)
