"""The rules for the learning rate and for Adam's memory."""

import math
from typing import Any

from tightgrad_lab.exercises.model import Case, Draw, Exam, slip


def cases(draw: Draw) -> list[Case]:
    """Factors from 2 to 64; some beyond the limit, the first one always."""
    found: list[Case] = []
    for index in range(12):
        batch, k = draw.pick((8, 16, 32, 48)), draw.pick((2, 4, 8, 16, 64)) if index else 64
        rate, curvature = draw.real(0.01 if index else 0.05, 0.09), draw.real(0.5 if index else 1.0, 3.0, 2)
        found.append((rate, curvature, batch, k * batch, draw.real(0.9, 0.999, 4)))
    return found


def right(
    rate: float,
    curvature: float,
    batch: int,
    new_batch: int,
    beta2: float,
    factor: str = "up",
    root: str = "root",
    limit: float = 2.0,
    small: str = "power",
    big: str = "linear",
    memory: str = "power",
    life: str = "items",
    curved: bool = True,
    unit: str = "factor",
) -> dict[str, Any]:
    """Return the answer."""
    k = new_batch / batch if factor == "up" else batch / new_batch
    slope = rate * (curvature if curved else 1.0)
    lives = {
        "items": batch * math.log(0.5) / math.log(beta2),
        "steps": math.log(0.5) / math.log(beta2),
        "new": new_batch * math.log(0.5) / math.log(beta2),
        "mean": batch / (1 - beta2),
    }
    return {
        "linear": k * rate,
        "root": {"root": math.sqrt(k), "linear": k, "same": 1.0}[root] * rate,
        "limit": limit / slope * (batch if unit == "items" else 1),
        "small": {"power": (1 - slope) ** k, "linear": 1 - k * slope, "exponential": math.exp(-k * slope)}[small],
        "big": {
            "linear": 1 - k * slope,
            "same": 1 - slope,
            "root": 1 - math.sqrt(k) * slope,
            "size": abs(1 - k * slope),
        }[big],
        "beta2": {"power": beta2**k, "root": beta2 ** (1 / k), "linear": 1 - k * (1 - beta2), "same": beta2}[memory],
        "half_life": lives[life],
    }


EXAM = Exam(
    function="answer",
    cases=cases,
    right=right,
    together=2,
    slips=(
        slip(
            "Adam's rule is a square root: its step is divided by the size of the noise already",
            "Adam 的规则是平方根：它的步长已经除过噪声的大小",
            root="linear",
        ),
        slip("the rate must grow with the square root of k", "学习率要按 k 的平方根放大", root="same"),
        slip(
            "up to 1 / (rate curvature) the big step does not even overshoot; it diverges from 2 / (rate curvature) on",
            "k 到 1/(学习率×曲率) 之前都还没有冲过头；到 2/(学习率×曲率) 才发散",
            limit=1.0,
        ),
        slip("the curvature is left out", "漏了曲率", curved=False),
        slip(
            "this is one big step; k small steps multiply k times", "这是走一大步；k 个小步要连乘 k 次", small="linear"
        ),
        slip(
            "this is the approximation by an exponential; multiply (1 - rate curvature) k times",
            "这是指数近似；应当把 (1 - 学习率×曲率) 连乘 k 次",
            small="exponential",
        ),
        slip("the big step has k times the rate", "大步的学习率是 k 倍", big="same"),
        slip("beyond the valley's floor the position is negative", "越过谷底之后，位置是负的", big="size"),
        slip(
            "you took the k-th root: a larger batch makes fewer steps, so each must forget more",
            "你开了 k 次方：批次越大步数越少，每一步应当忘得更多",
            memory="root",
        ),
        slip(
            "this is linear; the half-life is kept by beta2 to the power k",
            "这是线性近似；要保持半衰期，应取 beta2 的 k 次方",
            memory="linear",
        ),
        slip("beta2 must change with the batch", "beta2 要随批大小改变", memory="same"),
        slip("this is the half-life in steps; count items", "这是以步计的半衰期；应当以项计", life="steps"),
        slip(
            "the half-life belongs to the old batch, for which beta2 was given",
            "半衰期要用原来的批大小来算，beta2 是为它给出的",
            life="new",
        ),
        slip("this is the mean age and not the half-life", "这是平均时长，不是半衰期", life="mean"),
        slip("your factor is upside down: k is new_batch / batch", "倍数颠倒了：k 是 new_batch / batch", factor="down"),
        slip(
            "this is the batch size from which on it diverges; the factor between the batch sizes was asked for",
            "这是开始发散的批大小；问的是批大小的倍数",
            unit="items",
        ),
        slip(
            "this big step has the square-root rate; the linear rule was asked for",
            "这一大步用的是平方根规则的学习率；问的是线性规则",
            big="root",
        ),
    ),
)
