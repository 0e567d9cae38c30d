"""Both clippings of a few numbers."""

import math
from typing import Any

from tightgrad_lab.exercises.model import Case, Draw, Exam, slip


def cases(draw: Draw) -> list[Case]:
    """Gradients of two to five numbers; every third is shorter than its bound."""
    found: list[Case] = []
    for index in range(12):
        gradient = [draw.signed(0.5, 9.0, 2) for _ in range(draw.integer(2, 5))]
        length = math.hypot(*gradient)
        share = draw.real(1.1, 1.6) if index % 3 == 2 else draw.real(0.15, 0.5)
        found.append((gradient, round(share * length, 2)))
    return found


def right(
    gradient: list[float],
    bound: float,
    norm: str = "l2",
    cap: bool = True,
    value: str = "box",
    cosine: str = "both",
    turn: str = "down",
) -> dict[str, Any]:
    """Return the answer."""
    squares = sum(g * g for g in gradient)
    lengths = {
        "l2": math.sqrt(squares),
        "squares": squares,
        "l1": sum(map(abs, gradient)),
        "max": max(map(abs, gradient)),
    }
    length = lengths[norm]
    exact = bound / length if turn == "down" else length / bound
    factor = exact if not cap else min(1.0, exact) if turn == "down" else max(1.0, exact)
    boxes = {
        "box": [min(bound, max(-bound, g)) for g in gradient],
        "top": [min(bound, g) for g in gradient],
        "drop": [g if abs(g) <= bound else 0.0 for g in gradient],
        "positive": [min(bound, abs(g)) for g in gradient],
    }
    boxed = boxes[value]
    product, own = sum(g * v for g, v in zip(gradient, boxed, strict=True)), math.sqrt(sum(v * v for v in boxed))
    cosines = {
        "both": product / length / own,
        "product": product,
        "bound": product / length / bound,
        "first": product / length,
    }
    by_norm = [factor * g for g in gradient]
    return {"norm": length, "factor": factor, "by_norm": by_norm, "by_value": boxed, "cosine": cosines[cosine]}


EXAM = Exam(
    function="answer",
    cases=cases,
    right=right,
    slips=(
        slip("this is the sum of the squares; take its square root", "这是平方和，还要开平方", norm="squares"),
        slip(
            "you added the absolute values; the norm is the root of the sum of squares",
            "你把绝对值相加了；范数是平方和的平方根",
            norm="l1",
        ),
        slip("you took the largest element for the norm", "你把绝对值最大的元素当成了范数", norm="max"),
        slip(
            "your factor lengthens gradients that are shorter than the bound; it must never exceed 1",
            "梯度本来就短于上限时，你的系数反而把它拉长了；系数不能超过 1",
            cap=False,
        ),
        slip(
            "you cut at +bound only; negative elements below -bound pass uncut",
            "你只在正的一侧截断；小于 -bound 的元素没有被截断",
            value="top",
        ),
        slip(
            "you set elements beyond the bound to zero; value clipping cuts them at the bound",
            "你把超限的元素置零了；逐元素裁剪是把它们截在上限处",
            value="drop",
        ),
        slip(
            "the signs are lost: cut at +bound and at -bound",
            "符号丢了：应当在 +bound 和 -bound 两侧截断",
            value="positive",
        ),
        slip(
            "this is the inner product; divide it by both lengths", "这是内积，还要除以两个向量的长度", cosine="product"
        ),
        slip(
            "you divided by the bound as if it were the length of by_value; clipping by value leaves another length",
            "你把上限当成了 by_value 的长度；按值裁剪之后的长度并不等于上限",
            cosine="bound",
        ),
        slip("you divided by the gradient's length only", "你只除以了梯度的长度", cosine="first"),
        slip(
            "your factor is upside down: multiply by bound / norm",
            "系数颠倒了：应当乘 上限 / 范数",
            turn="up",
        ),
    ),
)
