"""Random rounding to a few levels: values, chances, variance."""

import math
from typing import Any

from tightgrad_lab.exercises.model import Case, Draw, Exam, slip


def cases(draw: Draw) -> list[Case]:
    """Vectors of three to six numbers and 2 to 16 levels."""
    found: list[Case] = []
    for _ in range(12):
        vector = [draw.signed(0.2, 9.0, 2) for _ in range(draw.integer(3, 6))]
        found.append((vector, draw.pick((2, 3, 4, 8, 16)), draw.pick((32, 64, 128, 256, 1024))))
    return found


def right(
    vector: list[float],
    levels: int,
    block: int,
    norm: str = "l2",
    sign: bool = True,
    chance: str = "up",
    variance: str = "exact",
    bound: str = "full",
    density: str = "full",
    rounding: str = "down",
    unit: str = "value",
) -> dict[str, Any]:
    """Return the answer."""
    squares = sum(v * v for v in vector)
    length = {"l2": math.sqrt(squares), "max": max(map(abs, vector)), "squares": squares}[norm]
    positions = [levels * abs(v) / length for v in vector]
    whole = [round(x) if rounding == "nearest" else math.floor(x) for x in positions]
    if rounding == "lower":
        whole = [math.floor(x) if v > 0 else math.ceil(x) for x, v in zip(positions, vector, strict=True)]
    low = [length * n / levels if unit == "value" else n for n in whole]
    ups = [x - math.floor(x) for x in positions]
    width = length / levels
    spread = sum(p * (1 - p) for p in ups)
    return {
        "low": [math.copysign(n, v) for n, v in zip(low, vector, strict=True)] if sign else low,
        "chance": {
            "up": ups,
            "down": [1 - p for p in ups],
            "signed": [math.copysign(p, v) for p, v in zip(ups, vector, strict=True)],
        }[chance],
        "variance": {
            "exact": width**2 * spread,
            "unit": spread,
            "width": width * spread,
            "mean": width**2 * spread / len(vector),
            "chances": width**2 * sum(ups),
            "bound": len(vector) * length**2 / (4 * levels**2),
        }[variance],
        "bound": {
            "full": len(vector) * length**2 / (4 * levels**2),
            "linear": len(vector) * length**2 / (4 * levels),
            "relative": len(vector) / (4 * levels**2),
            "one": length**2 / (4 * levels**2),
        }[bound],
        "density": {
            "full": (1 + 4 / block) / 8,
            "codes": 1 / 8,
            "values": (1 + 4 / block) / 4,
            "inverse": 8 / (1 + 4 / block),
        }[density],
    }


EXAM = Exam(
    function="answer",
    cases=cases,
    right=right,
    together=2,
    slips=(
        slip(
            "QSGD divides by the norm of the vector; dividing by its largest element is TernGrad",
            "QSGD 除以向量的范数；除以最大元素的是 TernGrad",
            norm="max",
        ),
        slip("the square root of the sum of squares is missing", "平方和漏了开平方", norm="squares"),
        slip("the signs are lost", "符号丢了", sign=False),
        slip("this rounds to the nearest level; round down", "这是四舍五入；应当向下取整", rounding="nearest"),
        slip("this is the chance of being rounded down", "这是向下取整的概率", chance="down"),
        slip(
            "this is the variance in units of a level; a level is norm / s wide, and the variance takes its square",
            "这是以级宽为单位的方差；级宽是范数除以 s，方差要乘它的平方",
            variance="unit",
        ),
        slip("the variance takes the square of a level's width", "方差要乘级宽的平方", variance="width"),
        slip(
            "this is the mean over elements; the squared length is a sum",
            "这是对元素的平均；长度的平方是和",
            variance="mean",
        ),
        slip(
            "the variance of a random 0 or 1 is p (1 - p), not p",
            "随机的 0 或 1，方差是 p(1-p)，不是 p",
            variance="chances",
        ),
        slip("this is the bound, with 1/4 for every element", "这是界：每个元素都用了 1/4", variance="bound"),
        slip("the levels enter the bound as a square", "界里的级数要平方", bound="linear"),
        slip(
            "this is the bound relative to the squared norm; multiply by it",
            "这是相对于范数平方的界，还要乘以范数的平方",
            bound="relative",
        ),
        slip("the bound is a sum over all elements", "界是对所有元素的和", bound="one"),
        slip("the scales of the blocks take bytes, too", "各块的缩放系数也占字节", density="codes"),
        slip(
            "an element of top-k takes 8 bytes: value and position",
            "top-k 每个元素占 8 字节：值和位置",
            density="values",
        ),
        slip("this is upside down", "分子分母颠倒了", density="inverse"),
        slip(
            "negative elements are rounded towards zero as well: round |v|, then give it its sign",
            "负数也是向零取整：先对 |v| 取整，再带上符号",
            rounding="lower",
        ),
        slip(
            "these are the numbers of levels; a level is worth norm / s",
            "这是级数；一级值 范数 / s",
            unit="levels",
        ),
        slip(
            "a chance has no sign: take x from |v|",
            "概率没有符号：x 由 |v| 算出",
            chance="signed",
        ),
    ),
)
